package iscsi

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What the target declares and at most accepts.
const (
	maxRecvSegment  = 256 << 10 // bytes of data in one PDU to us
	maxBurst        = 1 << 20
	maxFirstBurst   = 256 << 10
	commandWindow   = 128      // commands that a session may have outstanding
	maxTransfer     = 16 << 20 // bytes of one command
	maxLoginText    = 16 << 10 // bytes of the text of one log-in step
	portalGroup     = "1"
	defaultSegment  = 8192
	notUnderstood   = "NotUnderstood"
	reject          = "Reject"
	maxOutstanding  = 8         // R2Ts of one command
	outstandingData = 64 << 20  // bytes of write data that one session may have us hold
	maxManaging     = 16        // task management requests that one session may have under way
	bigReads        = 4         // reads above maxRecvSegment that one session may have under way
	minSegment      = 512       // smallest MaxRecvDataSegmentLength of the standard
	maxSegment      = 1<<24 - 1 // and the largest
)

// params are the operational parameters of a session (RFC 7143, 13).
type params struct {
	digests        Digests
	peerSegment    int // the initiator's MaxRecvDataSegmentLength
	maxBurst       int
	firstBurst     int
	outstandingR2T int
	initialR2T     bool
	immediateData  bool
}

// defaultParams are the standard's values for keys that nobody mentions.
func defaultParams() params {
	return params{
		peerSegment: defaultSegment, maxBurst: 256 << 10, firstBurst: 64 << 10, outstandingR2T: 1,
		initialR2T: true, immediateData: true,
	}
}

// negotiate answers one key of the operational stage; an empty reply means that
// the key is only declared.
func (p *params) negotiate(key, value string) (reply string, err error) {
	switch key {
	case "HeaderDigest":
		return digest(value, &p.digests.Header), nil
	case "DataDigest":
		return digest(value, &p.digests.Data), nil
	case "MaxRecvDataSegmentLength":
		n, err := number(key, value, minSegment, maxSegment)
		p.peerSegment = min(n, maxRecvSegment)
		return "", err
	case "MaxBurstLength":
		return lower(key, value, minSegment, maxSegment, maxBurst, &p.maxBurst)
	case "FirstBurstLength":
		return lower(key, value, minSegment, maxSegment, maxFirstBurst, &p.firstBurst)
	case "MaxOutstandingR2T":
		return lower(key, value, 1, 65535, maxOutstanding, &p.outstandingR2T)
	case "MaxConnections":
		var n int
		return lower(key, value, 1, 65535, 1, &n)
	case "ErrorRecoveryLevel":
		var n int
		return lower(key, value, 0, 2, 0, &n)
	case "DefaultTime2Wait": // the higher one counts; ours is 0
		n, err := number(key, value, 0, 3600)
		return strconv.Itoa(n), err
	case "DefaultTime2Retain":
		var n int
		return lower(key, value, 0, 3600, 0, &n)
	case "InitialR2T": // OR; ours is No
		return boolean(key, value, &p.initialR2T)
	case "ImmediateData": // AND; ours is Yes
		return boolean(key, value, &p.immediateData)
	case "DataPDUInOrder", "DataSequenceInOrder": // OR; ours is Yes
		return "Yes", nil
	case "IFMarker", "OFMarker":
		return "No", nil
	case "IFMarkInt", "OFMarkInt":
		return reject, nil
	case "TaskReporting":
		return "RFC3720", nil
	case "iSCSIProtocolLevel":
		var n int
		return lower(key, value, 0, 31, 1, &n)
	}
	return notUnderstood, nil
}

// digest picks CRC32C only where the initiator prefers it to None.
func digest(value string, on *bool) string {
	for _, v := range strings.Split(value, ",") {
		switch v {
		case "CRC32C":
			*on = true
			return v
		case "None":
			*on = false
			return v
		}
	}
	return reject
}

func number(key, value string, low, high int) (int, error) {
	n, err := ParseNumber(value)
	if err != nil || n < uint64(low) || n > uint64(high) {
		return 0, fmt.Errorf("%w: %s=%.20q", ErrText, key, value)
	}
	return int(n), nil
}

// lower negotiates a minimum: the smaller of the initiator's value and ours.
func lower(key, value string, low, high, ours int, into *int) (string, error) {
	n, err := number(key, value, low, high)
	if err != nil {
		return "", err
	}
	*into = min(n, ours)
	return strconv.Itoa(*into), nil
}

// boolean takes the initiator's value: with ours the result is the same.
func boolean(key, value string, into *bool) (string, error) {
	if !slices.Contains([]string{"Yes", "No"}, value) {
		return "", fmt.Errorf("%w: %s=%.20q", ErrText, key, value)
	}
	*into = value == "Yes"
	return value, nil
}
