package main

import (
	"context"
	"log/slog"

	"hotspare/storage/iscsi/initiator"
)

// kernelInitiator is the Initiator over the kernel's iscsi_tcp.
type kernelInitiator struct{ i *initiator.Initiator }

func newKernelInitiator(log *slog.Logger) (Initiator, error) {
	i, err := initiator.New(initiator.Options{Log: log})
	if err != nil {
		return nil, err
	}
	return kernelInitiator{i}, nil
}

// Login logs in and waits for the block device.
func (k kernelInitiator) Login(ctx context.Context, t Target) (DiskSession, error) {
	s, err := k.i.Login(ctx, initiator.Target{
		Portal: t.Portal, IQN: t.IQN, LUN: t.LUN, InitiatorName: t.InitiatorName, User: t.User, Secret: t.Secret,
		ReplacementTimeout: t.ReplacementTimeout,
	})
	if err != nil {
		return nil, err
	}
	ks := &kernelSession{Session: s, events: make(chan DiskEvent, 16)}
	go ks.forward()
	return ks, nil
}

type kernelSession struct {
	*initiator.Session
	events chan DiskEvent
}

// Events gives the session's changes; the channel ends with the session.
func (k *kernelSession) Events() <-chan DiskEvent { return k.events }

func (k *kernelSession) forward() {
	defer close(k.events)
	for e := range k.Session.Events() {
		change := DiskLost
		switch e.Kind {
		case initiator.Recovered:
			change = DiskRecovered
		case initiator.Refused:
			change = DiskRefused
		}
		k.events <- DiskEvent{Change: change, Why: e.Why}
	}
}
