package cow

// NoticeKind says what a Notice is about.
type NoticeKind string

// Kinds of notice.
const (
	VolumeStopped NoticeKind = "volume-stopped" // a checksum differs (STO-002)
	StoreStopped  NoticeKind = "store-stopped"  // a sync or write failed (STO-003)
	SpaceHigh     NoticeKind = "space-high"     // the high watermark is passed
	SpaceFull     NoticeKind = "space-full"     // writes are refused (STO-001)
	SpaceLow      NoticeKind = "space-low"      // below the low watermark again
)

// Notice tells what happened to the store without a caller to tell it to.
type Notice struct {
	Kind   NoticeKind
	Volume string // of VolumeStopped
	Err    error  // with its code; nil for SpaceHigh and SpaceLow
	// Free and Total are bytes of the file system, for the kinds about space.
	Free, Total int64
}
