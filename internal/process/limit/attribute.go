package limit

// ident names a process for good: a pid alone is used again.
type ident struct {
	pid   int
	start uint64
}

// owned is what is known of the trees, across scans of the process table.
type owned struct {
	self  int
	roots map[int]*scopeR     // root pid -> scope; the root is held as a zombie until Close
	known map[ident]*scopeR   // descendants that were attributed before
	stray map[ident][]*scopeR // descendants that nothing is known of, and the scopes that may have made them
}

// attribute assigns every descendant of this process to a tree. A child whose
// parent died is handed to this process, the subreaper, and does not show where
// it came from any more, so these are tried in order: it was seen before under
// its parent; its session is the tree's (setsid(2) is undone by nobody); its
// environment carries the tree's mark. What is left is a stray: it may belong to
// any tree that was alive when it was first seen.
func (o *owned) attribute(table map[int]proc, marked func(pid int, s *scopeR) bool, live map[*scopeR]bool) (trees map[*scopeR][]proc, strays []proc) {
	trees = map[*scopeR][]proc{}
	known, stray := map[ident]*scopeR{}, map[ident][]*scopeR{}
	type answer struct {
		scope *scopeR
		ours  bool // a descendant of this process
	}
	memo := map[int]answer{}
	var find func(pid, depth int) answer
	find = func(pid, depth int) answer {
		if a, ok := memo[pid]; ok {
			return a
		}
		p, ok := table[pid]
		// The depth bound guards against a loop in a table that changed while it
		// was read.
		if !ok || pid == o.self || depth > len(table) {
			return answer{ours: pid == o.self}
		}
		memo[pid] = answer{}
		id := ident{p.pid, p.start}
		var a answer
		switch parent := find(p.ppid, depth+1); {
		case o.roots[pid] != nil:
			a = answer{o.roots[pid], true}
		case o.known[id] != nil:
			a = answer{o.known[id], true}
		case parent.scope != nil:
			a = parent
		case !parent.ours:
		case o.roots[p.session] != nil:
			a = answer{o.roots[p.session], true}
		default:
			a.ours = true
			if _, seen := o.stray[id]; !seen {
				for s := range live {
					if marked(pid, s) {
						a.scope = s
						break
					}
				}
			}
		}
		memo[pid] = a
		return a
	}
	for pid, p := range table {
		if pid == o.self {
			continue
		}
		a := find(pid, 0)
		id := ident{p.pid, p.start}
		switch {
		case a.scope != nil:
			known[id] = a.scope
			if alive(p) {
				trees[a.scope] = append(trees[a.scope], p)
			}
		case a.ours && alive(p):
			makers, seen := o.stray[id]
			if !seen {
				for s := range live {
					makers = append(makers, s)
				}
			}
			stray[id] = makers
			strays = append(strays, p)
		}
	}
	o.known, o.stray = known, stray
	return trees, strays
}

func alive(p proc) bool { return p.state != 'Z' && p.state != 'X' }

// abandoned returns the strays that no live scope can have made.
func (o *owned) abandoned(strays []proc, live map[*scopeR]bool) []proc {
	var out []proc
	for _, p := range strays {
		claimed := false
		for _, s := range o.stray[ident{p.pid, p.start}] {
			claimed = claimed || live[s]
		}
		if !claimed {
			out = append(out, p)
		}
	}
	return out
}
