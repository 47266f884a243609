# syntax=docker/dockerfile:1
# One static image with every binary: the cgo resolver accepts names such as 127.1, Go's does not.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY api api
COPY cmd cmd
COPY controllers controllers
COPY internal internal
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    mkdir -p /out /rootfs/etc /rootfs/tmp && chmod 1777 /rootfs/tmp && \
    printf 'nonroot:x:65532:65532::/tmp:/sbin/nologin\n' > /rootfs/etc/passwd && \
    printf 'nonroot:x:65532:\n' > /rootfs/etc/group && \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath \
      -ldflags "-s -w -X main.version=$VERSION" -o /out/ \
      ./cmd/manager ./cmd/egress-proxy ./cmd/egress-relay ./cmd/egressctl ./cmd/sandbox-api

# Distroless and static: certificate roots, a user, the binaries, and nothing else. There is no
# shell, no package manager, and no base image to pull beside the Go one.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /rootfs/ /
COPY --from=build /out/ /
USER 65532:65532
ENTRYPOINT ["/manager"]
