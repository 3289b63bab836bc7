# syntax=docker/dockerfile:1
# One image, every command: `nexus usage`, `nexus billing`, `nexus analytics`, `nexus gateway`, and the
# rest of the command line (`migrate`, `overage process`, `stripe-sim`, …) as arguments.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The registry and the compiled dependencies are cache mounts: a change of our code compiles our code
# only. Copied files keep their modification times, which may be older than the cache; touched, they
# are seen as changed. The binary is copied out because a cache mount is not part of the layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package nexus --bin nexus \
    && install -D target/release/nexus /out/nexus \
    && install -d /out/spool

# glibc, libgcc and CA certificates; no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/nexus /usr/local/bin/nexus
# Where a volume for usage-svc's spool is mounted (SPOOL_DIR): a new one takes over the owner.
COPY --from=build --chown=65532:65532 /out/spool /var/lib/nexus/spool
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
# HTTP; gRPC of usage, billing and analytics; their metrics and the gateway's
EXPOSE 8080 50051 50052 50053 9150 9151 9152 9153
ENTRYPOINT ["/usr/local/bin/nexus"]
# Without an argument nexus is the development suite, which has no place in a container.
CMD ["--help"]
