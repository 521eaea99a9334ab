package iscsi

// abandon drops all tasks at the end of the connection. Those that run end by
// themselves.
func (c *conn) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = nil
	for _, t := range c.tasks {
		t.aborted = true
		if !t.runs {
			delete(c.tasks, t.tag)
		}
	}
}

// taskRequest carries out a task management request and answers when all that
// it aborts runs no more.
func (c *conn) taskRequest(h *Header) {
	req := *h
	c.managing <- struct{}{} // the initiator that sends too many waits
	c.running.Go(func() {
		defer func() { <-c.managing }()
		code := c.manage(&req)
		var r Header
		r.SetOpcode(OpTaskResponse, false)
		r.SetFlags(0x80)
		r[2] = code
		r.SetTaskTag(req.TaskTag())
		c.send(&r, nil)
		if req.Flags()&0x7f == tmfColdReset && code == tmfComplete {
			c.lu.unit.powerCycle()
		}
	})
}

func (c *conn) manage(h *Header) byte {
	if c.discovery {
		return tmfUnsupported
	}
	fn := h.Flags() & 0x7f
	if fn != tmfWarmReset && fn != tmfColdReset && fn != tmfAbortTask && h.LUN() != 0 {
		return tmfNoLUN
	}
	switch fn {
	case tmfAbortTask:
		if !c.abortTask(h.TransferTag()) {
			return tmfNoTask
		}
	case tmfAbortTaskSet:
		c.abortAll()
	case tmfClearTaskSet:
		for _, l := range c.lu.unit.members() {
			if l.c.abortAll() && l != c.lu {
				l.attend(attentionCleared)
			}
		}
	case tmfLUNReset, tmfWarmReset, tmfColdReset:
		c.lu.unit.reset()
	case tmfReassign:
		return tmfNoReassign
	default:
		return tmfUnsupported
	}
	return tmfComplete
}

// abortTask aborts one task and waits until it runs no more.
func (c *conn) abortTask(tag uint32) bool {
	c.mu.Lock()
	t := c.tasks[tag]
	if t == nil {
		c.mu.Unlock()
		return false
	}
	c.dropTask(t)
	c.mu.Unlock()
	if t.runs {
		<-t.done
	}
	return true
}

// abortAll aborts all tasks, waits until none runs any more, and says whether
// there was one.
func (c *conn) abortAll() bool {
	c.mu.Lock()
	var run []*task
	some := len(c.tasks) > 0
	for _, t := range c.tasks {
		if t.runs {
			run = append(run, t)
		}
		c.dropTask(t)
	}
	c.mu.Unlock()
	c.settle()
	for _, t := range run {
		<-t.done
	}
	return some
}

// dropTask marks a task as aborted; one that still collects data ends here.
// c.mu is held.
func (c *conn) dropTask(t *task) {
	if t.aborted {
		return
	}
	t.aborted = true
	if !t.runs {
		c.release(t)
	}
}
