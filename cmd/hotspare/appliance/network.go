package appliance

import (
	"context"
	"time"

	"hotspare"
	"hotspare/haengine"
)

// network keeps what is told of the links, for notices, history and API.
type network struct {
	alarms chan linkAlarm
}

type linkAlarm struct {
	link string
	at   time.Time
	err  *hotspare.Error
}

// alarmRoom is how many alarms may wait to be recorded.
const alarmRoom = 64

// alarm takes an alarm of a link's DHCP, which must not wait.
func (n *network) alarm(link string) func(*hotspare.Error) {
	return func(e *hotspare.Error) {
		select {
		case n.alarms <- linkAlarm{link, time.Now(), e}:
		default: // it is in the log, by DHCP
		}
	}
}

var _ = context.Background
var _ = haengine.Notice{}
