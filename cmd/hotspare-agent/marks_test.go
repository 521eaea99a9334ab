package main

import (
	"fmt"
	"testing"
	"time"

	"hotspare/haengine/agentlink"
)

func TestMarksGoWithHeartbeatsForAWhile(t *testing.T) {
	t.Setenv(initEnv, "1500")
	var m marks
	m.inherit()
	m.add("joined", 4000)
	m.add("joined", 9000) // the link came back
	if all := m.due(5 * time.Second); len(all) != 2 || all[0] != (agentlink.Mark{Name: "init", UpMillis: 1500}) || all[1].UpMillis != 4000 {
		t.Errorf("told %v", all)
	}
	if all := m.due(time.Minute); all != nil {
		t.Errorf("after a minute still %v", all)
	}
	m.tell(time.Minute) // another appliance
	if all := m.due(time.Minute + time.Second); len(all) != 2 {
		t.Errorf("to another appliance %v", all)
	}
	for i := range 100 {
		m.add(fmt.Sprint("m", i), 1)
	}
	if n := len(m.due(time.Second)); n != agentlink.MaxMarks {
		t.Errorf("%d marks", n)
	}
}
