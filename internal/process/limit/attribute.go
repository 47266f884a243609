package limit

import "slices"

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
// environment carries the tree's mark; only one tree was alive to make it. What is
// left is a stray: it may belong to any tree that was alive when it was first seen.
// The mark of a stray is looked for at every scan: in the middle of an execve(2) a
// process has no environment yet.
func (o *owned) attribute(table map[int]proc, marked func(pid int) *scopeR, live map[*scopeR]bool) map[*scopeR][]proc {
	trees := map[*scopeR][]proc{}
	known, stray := map[ident]*scopeR{}, map[ident][]*scopeR{}
	var candidates []*scopeR
	for s := range live {
		if s.forked {
			candidates = append(candidates, s)
		}
	}
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
			a = answer{marked(pid), true}
			makers, seen := o.stray[id]
			if !seen {
				makers = candidates
			}
			switch {
			case a.scope != nil:
			case !seen && len(makers) == 1:
				a.scope = makers[0]
			case alive(p):
				stray[id] = makers
			}
		}
		memo[pid] = a
		return a
	}
	for pid, p := range table {
		if pid == o.self {
			continue
		}
		scope := find(pid, 0).scope
		if scope == nil {
			continue
		}
		known[ident{p.pid, p.start}] = scope
		if alive(p) {
			trees[scope] = append(trees[scope], p)
		}
	}
	o.known, o.stray = known, stray
	return trees
}

func alive(p proc) bool { return p.state != 'Z' && p.state != 'X' }

// abandoned returns the pids of the strays that no live scope can have made.
func (o *owned) abandoned(live map[*scopeR]bool) []int {
	var pids []int
	for id, makers := range o.stray {
		if !slices.ContainsFunc(makers, func(s *scopeR) bool { return live[s] }) {
			pids = append(pids, id.pid)
		}
	}
	return pids
}

// mayBe tells whether one of the strays may belong to the scope.
func (o *owned) mayBe(s *scopeR) bool {
	for _, makers := range o.stray {
		if slices.Contains(makers, s) {
			return true
		}
	}
	return false
}
