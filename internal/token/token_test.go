package token

import (
	"testing"
	"time"
)

func TestMintedTokenVerifies(t *testing.T) {
	key, err := GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewKeySet(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClaims(MintOptions{Now: time.Now(), TTL: time.Hour, ContainerID: "c1", AllowedHosts: []string{"a.example"}, ContainerBinding: true})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Mint(c)
	if err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(set)
	for range 2 {
		got, err := v.Verify(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got.ContainerID != "c1" || got.AllowedHosts != "a.example" || !got.EnforceContainerBinding {
			t.Fatalf("claims = %+v", got)
		}
	}
}
