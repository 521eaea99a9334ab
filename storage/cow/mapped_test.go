package cow_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

// TestMappedAgreesWithExtents asks at random places what Extents tells at once.
func TestMappedAgreesWithExtents(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := context.Background()
	const size = 10<<20 + 512
	if err := errors.Join(s.Create(ctx, "a", size), write(s, "a", 4096, 8192, 1), write(s, "a", 60<<10, 70<<10, 2), write(s, "a", 1<<20, 1<<20, 5),
		write(s, "a", 10<<20, 512, 3), s.Clone(ctx, "a", "b"), write(s, "b", 5<<20, 4096, 4)); err != nil {
		t.Fatal(err)
	}
	dev, err := s.OpenVolume("b")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := dev.Discard(64<<10, 8192); err != nil {
		t.Fatal(err)
	}
	truth := make([]bool, size)
	if err := s.Extents(ctx, "b", 0, func(e cow.Extent) error {
		for i := e.Off; i < e.Off+e.Len; i++ {
			truth[i] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	m, ok := dev.(storage.Mapper)
	if !ok {
		t.Fatal("the store's devices do not know what is mapped")
	}
	places := []int64{0, 1, 4095, 4096, 12287, 12288, 10 << 20, size - 1}
	for range 300 {
		places = append(places, rand.Int64N(size))
	}
	for _, off := range places {
		limit := 1 + rand.Int64N(2*size)
		mapped, n, err := m.Mapped(off, limit)
		if err != nil || n < 1 || n > limit || off+n > size || mapped != truth[off] {
			t.Fatalf("at %d within %d: %v, %d, %v", off, limit, mapped, n, err)
		}
		for i := off; i < off+n; i++ {
			if truth[i] != mapped {
				t.Fatalf("at %d: %d bytes are said to be %v, byte %d is not", off, n, mapped, i)
			}
		}
		if end := off + n; n < limit && end < size && truth[end] == mapped {
			t.Fatalf("at %d: only %d bytes are told", off, n)
		}
	}
	if _, _, err := m.Mapped(size+1, 1); err == nil {
		t.Error("beyond the end")
	}
}
