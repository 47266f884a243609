package allowlist

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/yaml"
)

//go:embed presets/*.yaml
var presetFiles embed.FS

// Risk of a preset: what a sandbox that has it can do with secrets it read.
const (
	RiskReadOnly      = "read-only"      // no host takes uploads
	RiskUploadCapable = "upload-capable" // a host takes uploads from anyone with an account
)

// Preset is a named list of hosts, or with Includes a group of presets.
type Preset struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"` // raised with every change to Hosts or Includes
	Description string   `json:"description"`
	Risk        string   `json:"risk"` // RiskReadOnly or RiskUploadCapable
	RiskReason  string   `json:"riskReason"`
	Hosts       []string `json:"hosts,omitempty"`    // patterns, sorted
	Includes    []string `json:"includes,omitempty"` // names of presets, sorted
}

// Presets returns all presets and groups, sorted by name.
func Presets() []Preset {
	all, err := embedded()
	if err != nil {
		return nil
	}
	out := make([]Preset, len(all))
	for i, p := range all {
		out[i] = p.clone()
	}
	return out
}

// LookupPreset returns the preset or group of that exact name.
func LookupPreset(name string) (Preset, bool) {
	all, err := embedded()
	if err != nil {
		return Preset{}, false
	}
	i, ok := slices.BinarySearchFunc(all, name, comparePreset)
	if !ok {
		return Preset{}, false
	}
	return all[i].clone(), true
}

func comparePreset(p Preset, name string) int { return strings.Compare(p.Name, name) }

func (p Preset) clone() Preset {
	p.Hosts = slices.Clone(p.Hosts)
	p.Includes = slices.Clone(p.Includes)
	return p
}

// embedded parses the files once; the result is shared and must not be changed.
var embedded = sync.OnceValues(func() ([]Preset, error) { return loadPresets(presetFiles) })

func loadPresets(files fs.FS) ([]Preset, error) {
	paths, err := fs.Glob(files, "presets/*.yaml")
	if err != nil {
		return nil, err
	}
	out := make([]Preset, 0, len(paths))
	for _, path := range paths {
		p, err := loadPreset(files, path)
		if err != nil {
			return nil, fmt.Errorf("preset file %s: %w", path, err)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Preset) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func loadPreset(files fs.FS, path string) (Preset, error) {
	data, err := fs.ReadFile(files, path)
	if err != nil {
		return Preset{}, err
	}
	var p Preset
	if err := yaml.UnmarshalStrict(data, &p); err != nil {
		return Preset{}, err
	}
	switch {
	case "presets/"+p.Name+".yaml" != path:
		return Preset{}, fmt.Errorf("name %q is not the file's name", p.Name)
	case p.Version == "" || p.Description == "" || p.RiskReason == "":
		return Preset{}, fmt.Errorf("version, description and riskReason are required")
	case p.Risk != RiskReadOnly && p.Risk != RiskUploadCapable:
		return Preset{}, fmt.Errorf("risk %q is neither %s nor %s", p.Risk, RiskReadOnly, RiskUploadCapable)
	case (len(p.Hosts) == 0) == (len(p.Includes) == 0):
		return Preset{}, fmt.Errorf("it has to have either hosts or includes")
	}
	return p, nil
}

// resolvePreset returns the presets with hosts that a name stands for.
func resolvePreset(name string) ([]Preset, string) {
	all, err := embedded()
	if err != nil {
		return nil, "the presets of this build cannot be read: " + err.Error()
	}
	return resolve(all, name, nil)
}

func resolve(all []Preset, name string, path []string) ([]Preset, string) {
	i, ok := slices.BinarySearchFunc(all, name, comparePreset)
	switch {
	case !ok:
		names := make([]string, len(all))
		for i, p := range all {
			names[i] = p.Name
		}
		return nil, "there is no such preset: the presets are " + strings.Join(names, ", ")
	case slices.Contains(path, name):
		return nil, "the group includes itself: " + strings.Join(append(path, name), " -> ")
	}
	p := all[i]
	if len(p.Includes) == 0 {
		return []Preset{p}, ""
	}
	var out []Preset
	for _, inc := range p.Includes {
		got, reason := resolve(all, inc, append(slices.Clone(path), name))
		if reason != "" {
			return nil, reason
		}
		out = append(out, got...)
	}
	return out, ""
}
