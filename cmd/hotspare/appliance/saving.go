package appliance

import (
	"context"
	"log/slog"
	"time"
)

// saveEvery is how often records are written that may miss the last minute after a
// crash.
const saveEvery = time.Minute

// keepSaved writes a record while the appliance runs, when it has changed, and once
// more at its end. changes counts up with every change; save writes what there is
// then, which may be more.
func keepSaved(ctx context.Context, log *slog.Logger, what string, changes func() uint64, save func() error) error {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	var saved uint64
	for ended := false; !ended; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ended = true
		}
		now := changes()
		if now == saved {
			continue
		}
		if err := save(); err != nil {
			log.Warn(what+" not saved", "err", err)
			continue
		}
		saved = now
	}
	return nil
}
