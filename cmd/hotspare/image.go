package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func imageCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Work with images"}
	cmd.AddCommand(
		imageImportCommand(c), imageUploadCommand(c), imageBuildCommand(c), imageListCommand(c), imageShowCommand(c), imageVerifyCommand(c), imageTestCommand(c),
		imagePromoteCommand(c), imageRollbackCommand(c), imageChannelsCommand(c), imageDeleteCommand(c), imageCollectCommand(c),
	)
	return cmd
}

// imageFlags are those of everything that imports.
type imageFlags struct {
	in        api.ImageSource
	signature string
	size      string
	noWait    bool
	format    string
}

func (f *imageFlags) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.in.Format, "format", "auto", "raw, qcow2, vmdk, vhd, vhdx, tar, squashfs, or auto (looked at once, then fixed)")
	fs.StringVar(&f.in.Version, "version", "", "default: the first digits of its digest")
	fs.StringVar(&f.in.SHA256, "sha256", "", "expected SHA-256 of the file (of an OCI image: of its manifest)")
	fs.StringVar(&f.signature, "signature", "", "minisign signature; default: FILE.minisig where it exists")
	fs.StringVar(&f.in.Cmdline, "cmdline", "", "further kernel arguments of this image")
	fs.StringVar(&f.in.Channel, "channel", "", "promote it to this channel when it is imported")
	fs.StringVar(&f.in.Arch, "arch", "", "which image of an OCI index: amd64 (default) or arm64")
	fs.StringVar(&f.size, "disk-size", "", "of the disk that is made of a tar or container image, e.g. 4Gi")
	fs.BoolVar(&f.noWait, "no-wait", false, "print the task's id and go: hotspare tasks shows it")
	outputFlag(cmd, &f.format)
}

// complete reads what the flags name.
func (f *imageFlags) complete(cmd *cobra.Command, file string) error {
	if f.size != "" {
		n, err := bytesOf(f.size)
		if err != nil {
			return &usageError{cmd.CommandPath(), err}
		}
		f.in.DiskBytes = n
	}
	name := f.signature
	if name == "" && file != "" {
		if _, err := os.Stat(file + ".minisig"); err == nil {
			name = file + ".minisig"
		}
	}
	if name == "" {
		return nil
	}
	b, err := read(name)
	f.in.Signature = string(b)
	return err
}

// imageTask begins a task about an image and shows the image that it made.
func imageTask(cmd *cobra.Command, cl *client.Client, path string, in any, noWait bool, format string) error {
	var t api.Task
	if err := cl.Post(cmd.Context(), path, in, &t); err != nil {
		return err
	}
	if noWait {
		fmt.Fprintln(cmd.OutOrStdout(), t.ID)
		return nil
	}
	t, err := follow(cmd, cl, t)
	if err == nil {
		err = outcome(t)
	}
	if err != nil {
		return err
	}
	if t.Image == "" || t.Kind == "image verify" {
		fmt.Fprintln(cmd.OutOrStdout(), t.Text)
		return nil
	}
	var img api.Image
	if err := cl.Get(cmd.Context(), "/api/v1/images/"+url.PathEscape(t.Image), &img); err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), format, []api.Image{img}, func(t *table) { imageRows(t, []api.Image{img}) }, imageName)
}

func imageName(i api.Image) string { return "image/" + i.Name + ":" + i.Version }

func imageImportCommand(c *connection) *cobra.Command {
	var f imageFlags
	cmd := &cobra.Command{
		Use:   "import NAME --file FILE | --url URL",
		Short: "Take an image into the repository",
		Long: `Take an image into the repository: a file of the appliance, what a URL of http or
https names, or what a registry has (oci://HOST/NAME:TAG). Disks are raw, qcow2,
vmdk, vhd or vhdx; root file systems tar or squashfs; each may be compressed with
gzip, xz, zstd or bzip2. The digest is checked or recorded, kernel and modules are
found inside. With --kernel and --initrd alone the image runs from memory.

A download that was interrupted goes on when the same import is given again.`,
		Example: "  hotspare image import orders --file out/images/orders.raw --format raw\n" +
			"  hotspare image import web --url https://images.example/web.qcow2.zst --sha256 9f8... --channel stable\n" +
			"  hotspare image import app --url oci://registry.example/team/app:1.4",
		Args: wants(1, 1, "the image's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := &f.in
			if (in.File == "") == (in.URL == "") && (in.File != "" || in.Kernel == "" || in.Initrd == "") {
				return &usageError{cmd.CommandPath(), errors.New("import needs --file FILE or --url URL")}
			}
			for _, p := range []*string{&in.File, &in.Kernel, &in.Initrd, &in.Modules} {
				if *p == "" {
					continue
				}
				abs, err := filepath.Abs(*p)
				if err != nil {
					return err
				}
				*p = abs
			}
			in.Name = args[0]
			if err := f.complete(cmd, in.File); err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error {
				return imageTask(cmd, cl, "/api/v1/images/actions/import", in, f.noWait, f.format)
			})
		},
	}
	cmd.Flags().StringVar(&f.in.File, "file", "", "file on the appliance")
	cmd.Flags().StringVar(&f.in.URL, "url", "", "http://, https:// or oci:// URL")
	cmd.Flags().StringVar(&f.in.Kernel, "kernel", "", "kernel to take instead of what the disk holds")
	cmd.Flags().StringVar(&f.in.Initrd, "initrd", "", "initrd of the image")
	cmd.Flags().StringVar(&f.in.Modules, "modules", "", "folder lib/modules/VERSION to take instead of what the disk holds")
	f.flags(cmd)
	return cmd
}

func imageUploadCommand(c *connection) *cobra.Command {
	var f imageFlags
	var resume string
	cmd := &cobra.Command{
		Use:   "upload NAME FILE",
		Short: "Send a file of this machine to the appliance and import it",
		Long: `Send a file of this machine to the appliance, piece by piece, and import it. An
upload that was interrupted is gone on with by --resume and its id; it outlives a
restart of the appliance, and is forgotten after a week.`,
		Example: "  hotspare image upload web web.qcow2 --server https://appliance:8080 --token-file token",
		Args:    wants(2, 2, "the image's name and a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.in.Name = args[0]
			if err := f.complete(cmd, args[1]); err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error {
				id, err := upload(cmd, cl, args[1], resume, f.in.SHA256)
				if err != nil {
					return err
				}
				f.in.Upload, f.in.SHA256 = id, ""
				return imageTask(cmd, cl, "/api/v1/images/actions/import", f.in, f.noWait, f.format)
			})
		},
	}
	cmd.Flags().StringVar(&resume, "resume", "", "id of the upload to go on with")
	f.flags(cmd)
	return cmd
}

// upload sends a file and gives the upload's id.
func upload(cmd *cobra.Command, cl *client.Client, file, resume, want string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", &hotspare.Error{Code: hotspare.CodeNotFound, What: "the file cannot be read", Where: file, Err: err, Fix: "check the path"}
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if want != "" && want != sum {
		return "", &hotspare.Error{Code: hotspare.CodeImageDigest, What: "the file's SHA-256 differs", Where: file, Why: "expected " + want + ", got " + sum, Fix: "fetch the file again"}
	}
	var u api.ImageUpload
	if resume != "" {
		err = cl.Get(cmd.Context(), "/api/v1/uploads/"+url.PathEscape(resume), &u)
	} else {
		err = cl.Post(cmd.Context(), "/api/v1/uploads", map[string]any{"sizeBytes": n, "sha256": sum}, &u)
	}
	if err != nil {
		return "", err
	}
	if u.SHA256 != sum || u.SizeBytes != n {
		return "", &hotspare.Error{Code: hotspare.CodeConflict, What: "the upload is of another file", Where: resume, Why: fmt.Sprintf("it is of %d bytes with SHA-256 %s", u.SizeBytes, u.SHA256), Fix: "name the right file, or begin anew without --resume"}
	}
	if err := sendPieces(cmd, cl, f, &u); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "go on with: hotspare image upload ... --resume %s\n", u.ID)
		return "", err
	}
	return u.ID, nil
}

func sendPieces(cmd *cobra.Command, cl *client.Client, f io.ReaderAt, u *api.ImageUpload) error {
	line := newProgress(cmd.ErrOrStderr())
	defer line.clear()
	buf := make([]byte, max(1, min(u.PieceBytes, 1<<20)))
	failures := 0
	for u.OffsetBytes < u.SizeBytes {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), u.SizeBytes-u.OffsetBytes)], u.OffsetBytes)
		if n == 0 {
			return fmt.Errorf("read the file at byte %d: %w", u.OffsetBytes, err)
		}
		path := "/api/v1/uploads/" + url.PathEscape(u.ID)
		err = cl.Patch(cmd.Context(), path, "application/octet-stream", http.Header{"Upload-Offset": {strconv.FormatInt(u.OffsetBytes, 10)}}, buf[:n], u)
		if err == nil {
			failures = 0
			line.line(api.Task{ID: u.ID, Kind: "upload", Done: u.OffsetBytes, Total: u.SizeBytes})
			continue
		}
		// The answer may be lost, or the appliance is being restarted: ask where
		// the upload ends, for a while.
		if code := hotspare.CodeOf(err); cmd.Context().Err() != nil || code != hotspare.CodeUnavailable && problemCode(err) != hotspare.CodeConflict || failures >= 30 {
			return err
		}
		failures++
		if err := pause(cmd.Context(), time.Second); err != nil {
			return err
		}
		if gerr := cl.Get(cmd.Context(), path, u); gerr != nil && hotspare.CodeOf(gerr) != hotspare.CodeUnavailable {
			return gerr
		}
	}
	return nil
}

func problemCode(err error) hotspare.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func imageBuildCommand(c *connection) *cobra.Command {
	var version, channel, format string
	var noWait bool
	cmd := &cobra.Command{
		Use:   "build FILE.yaml",
		Short: "Make a Debian image by a recipe",
		Long: `Make an image of a Debian system by a recipe: its release, packages, files, users
and units. The packages come from the appliance's own apt sources. The same recipe
and the same packages give the same digest. A recipe runs code as root on the
appliance, so this works over the unix socket only. docs/images.md shows all
fields.`,
		Example: "  hotspare image build web.yaml --channel testing",
		Args:    wants(1, 1, "a recipe"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := read(args[0])
			if err != nil {
				return err
			}
			return c.with(func(cl *client.Client) error {
				in := map[string]any{"recipe": string(b)}
				if version != "" {
					in["version"] = version
				}
				if channel != "" {
					in["channel"] = channel
				}
				return imageTask(cmd, cl, "/api/v1/images/actions/build", in, noWait, format)
			})
		},
	}
	cmd.Flags().StringVar(&version, "version", "", "default: the first digits of its digest")
	cmd.Flags().StringVar(&channel, "channel", "", "promote it to this channel when it is built")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the task's id and go: hotspare tasks shows it")
	outputFlag(cmd, &format)
	return cmd
}

func imageListCommand(c *connection) *cobra.Command {
	cmd := getCommand(c)
	run := cmd.RunE
	return aliasOf(cmd, "list", "List the images", wants(0, 0, "no arguments"), func(cmd *cobra.Command, _ []string) error { return run(cmd, []string{"images"}) })
}

func imageShowCommand(c *connection) *cobra.Command {
	cmd := describeCommand(c)
	run := cmd.RunE
	return aliasOf(cmd, "show NAME:VERSION", "Show everything about one image", wants(1, 1, "an image"), func(cmd *cobra.Command, args []string) error { return run(cmd, []string{"image", args[0]}) })
}

func imageDeleteCommand(c *connection) *cobra.Command {
	cmd := deleteCommand(c)
	run := cmd.RunE
	return aliasOf(cmd, "delete NAME:VERSION", "Delete a version that nobody uses", wants(1, 1, "an image"), func(cmd *cobra.Command, args []string) error { return run(cmd, []string{"image", args[0]}) })
}

// aliasOf makes a command of another one that is the same for images.
func aliasOf(cmd *cobra.Command, use, short string, args cobra.PositionalArgs, run func(*cobra.Command, []string) error) *cobra.Command {
	cmd.Use, cmd.Short, cmd.Args, cmd.RunE, cmd.Example = use, short, args, run, ""
	return cmd
}

func imageVerifyCommand(c *connection) *cobra.Command {
	var noWait bool
	var format string
	cmd := &cobra.Command{
		Use: "verify NAME[:VERSION|:CHANNEL]", Short: "Read an image and compare it with its digests", Args: wants(1, 1, "an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				return imageTask(cmd, cl, "/api/v1/images/"+url.PathEscape(args[0])+"/actions/verify", map[string]any{}, noWait, format)
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the task's id and go: hotspare tasks shows it")
	outputFlag(cmd, &format)
	return cmd
}

func channelPath(name, channel string) string {
	return "/api/v1/image-channels/" + url.PathEscape(name) + "/" + url.PathEscape(channel)
}

func imagePromoteCommand(c *connection) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use:   "promote NAME:VERSION CHANNEL",
		Short: "Let a channel lead to a version",
		Long: `Let a channel lead to a version. Applications that name the channel (image:
orders:stable) are started from the new version at their next start; what runs goes
on with what it was started from.`,
		Example: "  hotspare image promote orders:1.4 stable --reason \"passed its week\"",
		Args:    wants(2, 2, "a version and a channel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, version, ok := strings.Cut(args[0], ":")
			if !ok {
				return &usageError{cmd.CommandPath(), fmt.Errorf("%q names no version", args[0])}
			}
			return c.with(func(cl *client.Client) error {
				var out api.ImageChannel
				if err := cl.Put(cmd.Context(), channelPath(name, args[1]), map[string]any{"version": version, "reason": why}, &out); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s:%s leads to %s\n", out.Name, out.Channel, out.Version)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&why, "reason", "", "why, for the record")
	return cmd
}

func imageRollbackCommand(c *connection) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: "rollback NAME:CHANNEL", Short: "Let a channel lead where it led before", Args: wants(1, 1, "a channel"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, channel, ok := strings.Cut(args[0], ":")
			if !ok {
				return &usageError{cmd.CommandPath(), fmt.Errorf("%q names no channel", args[0])}
			}
			return c.with(func(cl *client.Client) error {
				var out api.ImageChannel
				if err := cl.Post(cmd.Context(), channelPath(name, channel)+"/actions/rollback", map[string]any{"reason": why}, &out); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s:%s leads to %s again\n", out.Name, out.Channel, out.Version)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&why, "reason", "", "why, for the record")
	return cmd
}

func imageChannelsCommand(c *connection) *cobra.Command {
	var format, gone string
	cmd := &cobra.Command{
		Use: "channels [NAME]", Short: "Show where channels lead, and led before", Args: wants(0, 1, "an image, or nothing for all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				if gone != "" {
					name, channel, ok := strings.Cut(gone, ":")
					if !ok {
						return &usageError{cmd.CommandPath(), fmt.Errorf("%q names no channel", gone)}
					}
					return cl.Delete(cmd.Context(), channelPath(name, channel))
				}
				path := "/api/v1/image-channels"
				if len(args) == 1 {
					path += "?name=" + url.QueryEscape(args[0])
				}
				var all []api.ImageChannel
				if err := cl.Get(cmd.Context(), path, &all); err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), format, all, func(t *table) { channelRows(t, all) }, func(c api.ImageChannel) string { return "channel/" + c.Name + ":" + c.Channel })
			})
		},
	}
	cmd.Flags().StringVar(&gone, "delete", "", "delete the channel NAME:CHANNEL; its versions stay")
	outputFlag(cmd, &format)
	return cmd
}

func channelRows(t *table, all []api.ImageChannel) {
	t.row("CHANNEL", "VERSION", "BEFORE", "SINCE", "BY", "REASON")
	for _, c := range all {
		var last api.ImagePromotion
		if n := len(c.History); n > 0 {
			last = c.History[n-1]
		}
		t.row(c.Name+":"+c.Channel, c.Version, c.Previous, last.At.Format(time.RFC3339), last.By, last.Reason)
	}
}

func imageCollectCommand(c *connection) *cobra.Command {
	var r api.ImageRetention
	var dry, noWait bool
	var format string
	cmd := &cobra.Command{
		Use:   "gc [NAME...]",
		Short: "Remove the versions that nobody uses",
		Long: `Remove the versions of images that nobody uses. What an application names, what a
node was booted from, where a channel leads or can be rolled back to, and the newest
versions of each name are kept.`,
		Example: "  hotspare image gc --dry-run\n  hotspare image gc orders --newest 5 --days 30",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Names = args
			return c.with(func(cl *client.Client) error {
				if !dry {
					return imageTask(cmd, cl, "/api/v1/images/actions/collect", r, noWait, format)
				}
				q := url.Values{"newest": {strconv.Itoa(r.Newest)}, "days": {strconv.Itoa(r.Days)}}
				if len(args) > 0 {
					q.Set("names", strings.Join(args, ","))
				}
				var g api.ImageGarbage
				if err := cl.Get(cmd.Context(), "/api/v1/image-garbage?"+q.Encode(), &g); err != nil {
					return err
				}
				if format == "json" || format == "yaml" {
					return encode(cmd.OutOrStdout(), format, g)
				}
				all := append(g.Remove, g.Keep...)
				if err := show(cmd.OutOrStdout(), format, all, func(t *table) { garbageRows(t, g) }, func(v api.ImageVerdict) string { return "image/" + v.Image }); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%d versions would go, %s would be freed\n", len(g.Remove), size(g.Bytes))
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&r.Newest, "newest", 2, "versions of each name that are kept")
	cmd.Flags().IntVar(&r.Days, "days", 0, "keep what is younger")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show what would go and why the rest stays; change nothing")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the task's id and go: hotspare tasks shows it")
	outputFlag(cmd, &format)
	return cmd
}

func garbageRows(t *table, g api.ImageGarbage) {
	t.row("IMAGE", "VERDICT", "FREES", "WHY")
	for _, v := range g.Remove {
		t.row(v.Image, "goes", size(v.Bytes), v.Why)
	}
	for _, v := range g.Keep {
		t.row(v.Image, "stays", "", v.Why)
	}
}
