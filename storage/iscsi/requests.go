package iscsi

func (c *conn) nopOut(h *Header, data []byte) {
	if h.TaskTag() == ReservedTag {
		return // the answer to our own ping
	}
	var r Header
	r.SetOpcode(OpNopIn, false)
	r.SetFlags(0x80)
	r.SetLUN(h.LUN())
	r.SetTaskTag(h.TaskTag())
	r.SetTransferTag(ReservedTag)
	c.send(&r, data[:min(len(data), c.params.peerSegment)])
}

func (c *conn) logout(h *Header) error {
	var r Header
	r.SetOpcode(OpLogoutResponse, false)
	r.SetFlags(0x80)
	r.SetTaskTag(h.TaskTag())
	reason := h.Flags() & 0x7f
	switch {
	case reason == 1 && h.Uint16(20) != c.cid:
		r[2] = 1 // no such connection
	case reason == 2:
		r[2] = 2 // recovery is not supported
	case reason > 2:
		c.reject(h, rejectInvalid)
		return nil
	}
	if r[2] != 0 {
		c.send(&r, nil)
		return nil
	}
	c.batchFor(0).add(&r, nil, c.params.digests, true, true) // serve sends it before it ends
	return errLoggedOut
}

// text answers SendTargets (RFC 7143, 11.10, 11.11 and appendix C). A request
// without a transfer tag begins a new exchange; one with the C bit has more to
// come, and an answer that does not fit one PDU is asked for piece by piece.
func (c *conn) text(h *Header, data []byte) error {
	if h.TransferTag() == ReservedTag {
		c.textAsked, c.textRest = nil, nil
	}
	more := h.Flags()&0x40 != 0
	if len(c.textRest) > 0 {
		if more || len(data) > 0 {
			return c.protocolError(h, "text in the middle of an answer")
		}
		c.answerPart(h)
		return nil
	}
	if len(c.textAsked)+len(data) > maxLoginText {
		return c.protocolError(h, "text above %d bytes", maxLoginText)
	}
	c.textAsked = append(c.textAsked, data...)
	if more {
		r := textResponse(h)
		r.SetTransferTag(1) // neither final nor to be continued: go on
		c.send(&r, nil)
		return nil
	}
	pairs, err := ParseText(c.textAsked)
	c.textAsked = nil
	if err != nil {
		return c.protocolError(h, "%w", err)
	}
	c.textRest = c.answerText(pairs)
	c.answerPart(h)
	return nil
}

// answerPart sends as much of the answer as one PDU takes.
func (c *conn) answerPart(h *Header) {
	part := c.textRest[:min(len(c.textRest), c.params.peerSegment)]
	c.textRest = c.textRest[len(part):]
	r := textResponse(h)
	if len(c.textRest) == 0 {
		r.SetFlags(0x80)
		r.SetTransferTag(ReservedTag)
	} else {
		r.SetFlags(0x40)
		r.SetTransferTag(1)
	}
	c.send(&r, part)
}

func textResponse(h *Header) Header {
	var r Header
	r.SetOpcode(OpTextResponse, false)
	r.SetLUN(h.LUN())
	r.SetTaskTag(h.TaskTag())
	return r
}

func (c *conn) answerText(pairs Pairs) []byte {
	var reply Pairs
	for _, kv := range pairs {
		if kv.Key != "SendTargets" {
			reply.Add(kv.Key, notUnderstood)
			continue
		}
		for _, name := range c.t.opts.Directory.Visible(c.nexus.initiator) {
			own := name == c.nexus.target
			if c.discovery && (kv.Value == "All" || kv.Value == name) || own && (kv.Value == "" || kv.Value == name) {
				reply.Add("TargetName", name)
				for _, a := range c.t.addresses(c.nc.LocalAddr()) {
					reply.Add("TargetAddress", a+","+portalGroup)
				}
			}
		}
	}
	return reply.Encode()
}
