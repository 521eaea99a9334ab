package main

import (
	"strings"
	"testing"
	"time"

	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
	"hotspare/ui/api"
)

// What a test declares is what an operator could declare.
func TestDocumentsOfAnImageTest(t *testing.T) {
	linux := api.Image{Starts: []string{"kernel", "san"}, Init: "systemd"}
	process := api.Image{Starts: []string{"kernel"}}
	opaque := api.Image{Starts: []string{"san"}, Init: "unknown"}
	for _, c := range []struct {
		name string
		app  imageTestApp
		img  api.Image
		way  haengine.Way
	}{
		{"a Linux", imageTestApp{http: "/", port: 80}, linux, haengine.WayColdISCSI},
		{"a Linux as a disk", imageTestApp{way: "cold-san", expect: "login:"}, linux, haengine.WayColdSAN},
		{"one process", imageTestApp{process: "/app -v", tcp: 8080}, process, haengine.WayColdISCSI},
		{"opaque", imageTestApp{expect: "SAC>"}, opaque, haengine.WayColdSAN},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.app.choose(c.img); err != nil {
				t.Fatal(err)
			}
			src, err := c.app.documents(1024, 10*time.Minute, c.img)
			if err != nil {
				t.Fatal(err)
			}
			docs, err := manifest.Parse("test", src)
			if err != nil || len(docs) != 3 {
				t.Fatalf("%d documents, %v", len(docs), err)
			}
			if err := docs[1].Node.WithDefaults().Validate(); err != nil {
				t.Error(err)
			}
			app := docs[2].Application.WithDefaults()
			if err := app.Validate(); err != nil {
				t.Error(err)
			}
			if len(app.Policy.Ways) != 1 || app.Policy.Ways[0] != c.way || app.Policy.MaxAttempts != 1 {
				t.Errorf("policy %+v", app.Policy)
			}
		})
	}
}

func TestImageTestsThatCannotTell(t *testing.T) {
	for _, c := range []struct {
		name string
		app  imageTestApp
		img  api.Image
		says string
	}{
		{"no way", imageTestApp{}, api.Image{}, "no way"},
		{"another way", imageTestApp{way: "ram"}, api.Image{Starts: []string{"kernel"}, Init: "systemd"}, "does not offer ram"},
		{"a silent disk", imageTestApp{}, api.Image{Starts: []string{"san"}}, "--expect"},
		{"which process", imageTestApp{}, api.Image{Starts: []string{"kernel"}}, "--process"},
	} {
		if err := c.app.choose(c.img); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, a := range []imageTestApp{{way: "slot", port: 80}, {http: "x", port: 80}, {way: "cold-san", port: 80}, {way: "cold-san", expect: "x", tcp: 5, port: 80}, {}} {
		if a.validate() == nil {
			t.Errorf("%+v is taken", a)
		}
	}
}

// Why a machine started anew stands before the second boot.
func TestTheConsoleOfTheFirstBoot(t *testing.T) {
	console := "SeaBIOS 1\niPXE\nLinux\nKernel panic\nSeaBIOS 1\niPXE\n"
	if startedAnew(console) || firstBoot(console) != console {
		t.Error("a boot that goes on is taken for a further one")
	}
	console += "hotspare: this machine waits\nhotspare: asks again\nhotspare: this machine waits\n"
	if !startedAnew(console) || firstBoot(console) != "SeaBIOS 1\niPXE\nLinux\nKernel panic\n" {
		t.Errorf("the first boot is %q", firstBoot(console))
	}
}
