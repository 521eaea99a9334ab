package initiator

import (
	"fmt"
	"strconv"

	"hotspare/storage/iscsi"
)

// negotiated is what a connection runs with (RFC 7143, section 13).
type negotiated struct {
	maxRecv, maxXmit         uint32 // MaxRecvDataSegmentLength: ours, the target's
	firstBurst, maxBurst     uint32
	initialR2T               bool
	immediateData            bool
	headerDigest, dataDigest bool
	portalGroup              int
	expStatSN                uint32

	digests  bool            // CRC32C is among our offers
	answered map[string]bool // our offers that got their answer
}

// What we offer. One R2T at a time, as iscsid does: the kernel sends one burst
// after the other anyway.
const (
	offerMaxRecv    = 256 << 10
	offerFirstBurst = 256 << 10
	offerMaxBurst   = 1 << 20
	defaultMaxXmit  = 8192 // when the target declares nothing
)

// offer gives our side of the negotiation: it holds until an answer lowers it.
func offer(digests bool) negotiated {
	return negotiated{
		digests: digests,
		maxRecv: offerMaxRecv, maxXmit: defaultMaxXmit,
		firstBurst: offerFirstBurst, maxBurst: offerMaxBurst,
		immediateData: true, portalGroup: 1,
		answered: make(map[string]bool),
	}
}

// offers gives the keys of our first operational request.
func (n *negotiated) offers() iscsi.Pairs {
	digest := "None"
	if n.digests {
		digest = "CRC32C,None"
	}
	return iscsi.Pairs{
		{Key: "HeaderDigest", Value: digest},
		{Key: "DataDigest", Value: digest},
		{Key: "MaxRecvDataSegmentLength", Value: number(n.maxRecv)},
		{Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"},
		{Key: "MaxBurstLength", Value: number(n.maxBurst)},
		{Key: "FirstBurstLength", Value: number(n.firstBurst)},
		{Key: "MaxOutstandingR2T", Value: "1"},
		{Key: "MaxConnections", Value: "1"},
		{Key: "ErrorRecoveryLevel", Value: "0"},
		{Key: "DefaultTime2Wait", Value: "2"},
		{Key: "DefaultTime2Retain", Value: "0"},
		{Key: "DataPDUInOrder", Value: "Yes"},
		{Key: "DataSequenceInOrder", Value: "Yes"},
	}
}

// take reads the target's answers and offers, and gives our answers to its
// offers.
func (n *negotiated) take(pairs iscsi.Pairs) (iscsi.Pairs, error) {
	var reply iscsi.Pairs
	offered := n.offers()
	for _, p := range pairs {
		_, ours := offered.Get(p.Key)
		switch {
		case p.Key == "TargetPortalGroupTag" || p.Key == "TargetAlias" || p.Key == "TargetAddress":
			continue // declarations
		case p.Key == "MaxRecvDataSegmentLength":
			v, err := numberBetween(p, 512, 1<<24-1)
			if err != nil {
				return nil, err
			}
			n.maxXmit = v
			continue
		case !ours:
			reply.Add(p.Key, answerTo(p.Key))
			continue
		case n.answered[p.Key]:
			return nil, fmt.Errorf("%w: %s is negotiated twice", errProtocol, p.Key)
		}
		n.answered[p.Key] = true
		if err := n.answer(p); err != nil {
			return nil, err
		}
	}
	if n.firstBurst > n.maxBurst {
		n.firstBurst = n.maxBurst // the target lowered one only
	}
	return reply, nil
}

// answerTo gives our answer to a key that we did not offer. Markers are
// obsolete (RFC 7143, 13.25) and declined; other keys are not known.
func answerTo(key string) string {
	switch key {
	case "OFMarker", "IFMarker":
		return "No"
	case "OFMarkInt", "IFMarkInt":
		return "Irrelevant"
	}
	return "NotUnderstood"
}

// answer applies one answer to our offer. An answer that is not among the
// values that the offer allows breaks the protocol.
func (n *negotiated) answer(p iscsi.Pair) error {
	var err error
	switch p.Key {
	case "HeaderDigest":
		n.headerDigest, err = n.digestAnswer(p)
	case "DataDigest":
		n.dataDigest, err = n.digestAnswer(p)
	case "InitialR2T":
		n.initialR2T, err = boolAnswer(p)
	case "ImmediateData":
		n.immediateData, err = boolAnswer(p)
	case "MaxBurstLength":
		n.maxBurst, err = numberBetween(p, 512, n.maxBurst)
	case "FirstBurstLength":
		n.firstBurst, err = numberBetween(p, 512, n.firstBurst)
	case "MaxOutstandingR2T", "MaxConnections":
		_, err = numberBetween(p, 1, 1)
	case "ErrorRecoveryLevel":
		_, err = numberBetween(p, 0, 0)
	case "DefaultTime2Wait", "DefaultTime2Retain":
		_, err = numberBetween(p, 0, 3600)
	case "DataPDUInOrder", "DataSequenceInOrder":
		var inOrder bool
		if inOrder, err = boolAnswer(p); err == nil && !inOrder {
			err = fmt.Errorf("%w: %s=No answers Yes", errProtocol, p.Key)
		}
	}
	return err
}

func (n *negotiated) digestAnswer(p iscsi.Pair) (bool, error) {
	switch {
	case p.Value == "CRC32C" && n.digests:
		return true, nil
	case p.Value == "None":
		return false, nil
	}
	return false, fmt.Errorf("%w: %s=%.20q", errProtocol, p.Key, p.Value)
}

func boolAnswer(p iscsi.Pair) (bool, error) {
	switch p.Value {
	case "Yes":
		return true, nil
	case "No":
		return false, nil
	case "Irrelevant": // e.g. FirstBurstLength without unsolicited data
		return false, nil
	}
	return false, fmt.Errorf("%w: %s=%.20q", errProtocol, p.Key, p.Value)
}

// numberBetween reads a number; "Irrelevant" leaves the upper bound.
func numberBetween(p iscsi.Pair, low, high uint32) (uint32, error) {
	if p.Value == "Irrelevant" {
		return high, nil
	}
	v, err := iscsi.ParseNumber(p.Value)
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", errProtocol, p.Key, err)
	}
	if v < uint64(low) || v > uint64(high) {
		return 0, fmt.Errorf("%w: %s=%s, %s to %s are allowed", errProtocol, p.Key,
			strconv.FormatUint(v, 10), number(low), number(high))
	}
	return uint32(v), nil
}
