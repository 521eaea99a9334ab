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

// text answers SendTargets (RFC 7143, appendix C).
func (c *conn) text(h *Header, data []byte) error {
	var reply []byte
	if h.TransferTag() == ReservedTag {
		pairs, err := ParseText(data)
		if err != nil {
			return c.protocolError(h, "%w", err)
		}
		reply = c.answerText(pairs)
	} else {
		reply = c.textRest
	}
	part := reply[:min(len(reply), c.params.peerSegment)]
	c.textRest = reply[len(part):]
	var r Header
	r.SetOpcode(OpTextResponse, false)
	r.SetLUN(h.LUN())
	r.SetTaskTag(h.TaskTag())
	if len(c.textRest) == 0 {
		r.SetFlags(0x80)
		r.SetTransferTag(ReservedTag)
	} else {
		r.SetFlags(0x40)
		r.SetTransferTag(1)
	}
	c.send(&r, part)
	return nil
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
