# syntax=docker/dockerfile:1
# Build: `make docker`. Run (Docker's own seccomp profile blocks io_uring, see docs/operations.md):
#   docker run --security-opt seccomp=config/seccomp-io_uring.json --ulimit nofile=65536 --ulimit memlock=67108864 \
#     --env ENVIRONMENT=production --env JWT_SECRET --publish 8080:8080 archmesh-gateway
ARG RUST_VERSION=1.95
ARG DEBIAN=bookworm

FROM rust:${RUST_VERSION}-slim-${DEBIAN} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ libc6-dev make cmake ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --package archmesh-gateway --bin archmesh \
    && install -D --strip target/release/archmesh /image/usr/local/bin/archmesh
# The last stage has no shell and no package manager: only the binary, the C library it is linked with, the certificate
# authorities (for key sets fetched over HTTPS) and one unprivileged user.
RUN ldd /image/usr/local/bin/archmesh | grep -oE '/[^ ]+' | sort -u \
        | while read -r library; do install -D "$(realpath "$library")" "/image$library"; done \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 755 /image/etc/archmesh && install -d -o 10001 -g 10001 -m 750 /image/var/lib/archmesh \
    && echo 'archmesh:x:10001:10001::/var/lib/archmesh:/sbin/nologin' > /image/etc/passwd \
    && echo 'archmesh:x:10001:' > /image/etc/group

FROM scratch
COPY --from=build /image /
USER 10001:10001
WORKDIR /var/lib/archmesh
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/archmesh"]
CMD ["serve"]
