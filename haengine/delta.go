package haengine

// Delta names what a step changed in the durable state, for the journal. A nil
// value means that the entry is gone.
type Delta struct {
	Nodes     map[string]*NodeState    `json:"nodes,omitempty"`
	Pools     map[string]*Pool         `json:"pools,omitempty"`
	Apps      map[string]*AppState     `json:"apps,omitempty"`
	Failovers map[FailoverID]*Failover `json:"failovers,omitempty"`
	Freezes   map[string]*Freeze       `json:"freezes,omitempty"`
	Pending   map[ActionID]*Pending    `json:"pending,omitempty"`
	Images    map[string]*ImageFacts   `json:"images,omitempty"`
	Times     map[string]*Measured     `json:"times,omitempty"`
	Meta      *Meta                    `json:"meta,omitempty"` // set when any of it changed
	Entries   []Entry                  `json:"entries,omitempty"`
}

// Meta is the durable state's small rest.
type Meta struct {
	Version      int              `json:"version"`
	Site         Site             `json:"site"`
	Floors       map[string]Epoch `json:"floors,omitempty"`
	Incidents    map[string]Stamp `json:"incidents,omitempty"`
	NextAction   ActionID         `json:"nextAction"`
	NextFailover FailoverID       `json:"nextFailover"`
	Fences       []Stamp          `json:"fences,omitempty"`
	Planned      *Planned         `json:"planned,omitempty"`
}

// IsEmpty says whether nothing durable changed and nothing was said.
func (d Delta) IsEmpty() bool {
	return len(d.Nodes)+len(d.Pools)+len(d.Apps)+len(d.Failovers)+len(d.Freezes)+len(d.Pending)+len(d.Images)+len(d.Times)+len(d.Entries) == 0 && d.Meta == nil
}

// Delta gives what the step that made this state changed in its durable part.
func (s State) Delta() Delta { return s.delta }

// Merge applies a delta to a durable state in place: the way in which a journal
// is replayed.
func (d *Durable) Merge(x Delta) {
	d.init()
	merge(d.Nodes, x.Nodes)
	merge(d.Pools, x.Pools)
	merge(d.Apps, x.Apps)
	merge(d.Failovers, x.Failovers)
	merge(d.Freezes, x.Freezes)
	merge(d.Pending, x.Pending)
	merge(d.Images, x.Images)
	merge(d.Times, x.Times)
	if m := x.Meta; m != nil {
		d.Version, d.Site, d.Floors, d.Incidents = m.Version, m.Site, m.Floors, m.Incidents
		d.NextAction, d.NextFailover, d.Fences, d.Planned = m.NextAction, m.NextFailover, m.Fences, m.Planned
	}
	d.init()
}

func merge[K comparable, V any](dst, src map[K]*V) {
	for k, v := range src {
		if v == nil {
			delete(dst, k)
		} else {
			dst[k] = v
		}
	}
}

// Readable says whether a durable state of that version can be taken over; 0 is
// that of a new appliance.
func Readable(version int) bool {
	return version == 0 || version >= oldestVersion && version <= StateVersion
}

// init makes the maps that a decoded or zero value lacks.
func (d *Durable) init() {
	if d.Version == 0 {
		d.Version = StateVersion
	}
	ensure(&d.Nodes)
	ensure(&d.Pools)
	ensure(&d.Apps)
	ensure(&d.Floors)
	ensure(&d.Failovers)
	ensure(&d.Freezes)
	ensure(&d.Pending)
	ensure(&d.Incidents)
	ensure(&d.Images)
	ensure(&d.Times)
}

func ensure[K comparable, V any](m *map[K]V) {
	if *m == nil {
		*m = map[K]V{}
	}
}

// NewState starts from a journalled durable state; the zero Durable is a new
// appliance. The first event must be Restarted.
func NewState(d Durable) State {
	d.init()
	d.Version = StateVersion // what Readable admits is read as it is
	return State{Durable: d, Soft: Soft{
		Apps: map[string]*AppSoft{}, Nodes: map[string]*NodeSoft{},
		Leases: map[string]Instant{}, Pending: map[ActionID]*Pending{},
	}}
}
