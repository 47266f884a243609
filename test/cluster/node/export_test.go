package node

// Cgroup is for tests that look for what is left of it.
func (c Config) Cgroup() string { return c.cgroup() }
