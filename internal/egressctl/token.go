package egressctl

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sandbox-egress/sandbox-egress/internal/token"
)

func (a *App) tokenCommand() *cobra.Command {
	return group("token", "Mint, inspect and verify sandbox tokens",
		a.mintCommand(), a.inspectCommand(), a.verifyCommand())
}

const tokenSources = `The token is the argument, or comes from --file, or from stdin ("-" or nothing given).
A whole proxy URL, or the password "jwt_<token>", is accepted as well. A token on the
command line can be seen by other users of this machine.`

// readToken takes the token from the argument, the file, or stdin.
func (a *App) readToken(args []string, file string) (string, error) {
	if len(args) > 0 && file != "" {
		return "", errors.New("--file: give the token as an argument or with --file, not both")
	}
	var text string
	switch {
	case len(args) > 0 && args[0] != "-":
		text = args[0]
	default:
		if file == "" {
			file = "-"
		}
		data, err := a.readInput("--file", file)
		if err != nil {
			return "", err
		}
		text = string(data)
	}
	if strings.TrimSpace(text) == "" {
		return "", errors.New("no token given: pass it as an argument, with --file, or on stdin")
	}
	return token.FromProxyURL(text)
}

func atMostOneToken(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return errors.New("want one token: " + cmd.UseLine())
	}
	return nil
}
