package initiator

import (
	"fmt"
	"strconv"
	"time"
)

// param is enum iscsi_param.
type param uint32

const (
	paramMaxRecvDLength  param = 0
	paramMaxXmitDLength  param = 1
	paramHeaderDigest    param = 2
	paramDataDigest      param = 3
	paramInitialR2T      param = 4
	paramMaxR2T          param = 5
	paramImmediateData   param = 6
	paramFirstBurst      param = 7
	paramMaxBurst        param = 8
	paramPDUInOrder      param = 9
	paramDataSeqInOrder  param = 10
	paramERL             param = 11
	paramExpStatSN       param = 14
	paramTargetName      param = 15
	paramTPGT            param = 16
	paramAddress         param = 17
	paramPort            param = 18
	paramRecoveryTimeout param = 19
	paramFastAbort       param = 26
	paramAbortTimeout    param = 27
	paramLUResetTimeout  param = 28
	paramPingTimeout     param = 30
	paramRecvTimeout     param = 31
	paramInitiatorName   param = 34
	paramTgtResetTimeout param = 35
)

// setting is one value for the kernel.
type setting struct {
	param param
	value string
}

// settings lists what the kernel is told between a log-in and the start of the
// connection, in iscsid's order. Secrets are not among them: the kernel would
// show them in sysfs and needs them for nothing.
func settings(t *Target, n negotiated) []setting {
	return []setting{
		{paramMaxRecvDLength, number(n.maxRecv)},
		{paramMaxXmitDLength, number(n.maxXmit)},
		{paramHeaderDigest, flag(n.headerDigest)},
		{paramDataDigest, flag(n.dataDigest)},
		{paramInitialR2T, flag(n.initialR2T)},
		{paramMaxR2T, "1"},
		{paramImmediateData, flag(n.immediateData)},
		{paramFirstBurst, number(n.firstBurst)},
		{paramMaxBurst, number(n.maxBurst)},
		{paramPDUInOrder, "1"},
		{paramDataSeqInOrder, "1"},
		{paramERL, "0"},
		{paramExpStatSN, number(n.expStatSN)},
		{paramTargetName, t.IQN},
		{paramInitiatorName, t.InitiatorName},
		{paramTPGT, strconv.Itoa(n.portalGroup)},
		{paramAddress, t.Portal.Addr().Unmap().WithZone("").String()},
		{paramPort, number(uint32(t.Portal.Port()))},
		{paramRecoveryTimeout, recoverySeconds(t.ReplacementTimeout)},
		{paramFastAbort, "1"},
		{paramAbortTimeout, "15"},
		{paramLUResetTimeout, "30"},
		{paramTgtResetTimeout, "30"},
		{paramRecvTimeout, seconds(t.IdleTime)},
		{paramPingTimeout, seconds(t.PingTimeout)},
	}
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// seconds rounds up: the kernel counts whole seconds and reads zero as "off".
func seconds(d time.Duration) string {
	return fmt.Sprint(int64((d + time.Second - 1) / time.Second))
}

// recoverySeconds gives the kernel's recovery timeout; below zero it waits for
// ever.
func recoverySeconds(d time.Duration) string {
	if d < 0 {
		return "-1"
	}
	return seconds(d)
}
