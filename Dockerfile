# One image for every process of catchall; the command selects the process, by default the standalone.
# docker-compose.yml shows how the others belong together, and tests/suite/compose.rs compares both files with the code.

FROM rust:1.95-trixie AS build
WORKDIR /src
COPY . .
# Cargo's downloads and build results stay in the two mounts, so only changed code is compiled again. Cargo
# compares the times of files: without touch, an older checkout would pass for already compiled.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    touch src/lib.rs bin/*.rs crates/*/src/*.rs && \
    cargo install --locked --profile dist --path . --root /out --no-track && \
    cargo install --locked --profile dist --path crates/catchall-load --root /out --no-track

# The same Debian release as above, because the binaries need its C library.
FROM debian:trixie-slim
LABEL org.opencontainers.image.title="catchall" \
      org.opencontainers.image.description="Tells from delivery events which e-mail domains are catch-alls: exactly once, in one process or through RabbitMQ and Postgres" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
# For amqps://. For the databases, public authorities are compiled in.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/bin/ /usr/local/bin/
# Where the standalone keeps its data: mount a volume there. The services write nothing.
RUN install -d -m 700 -o 10001 -g 10001 /data
# A numeric user, so that an orchestrator can tell that it is not root.
USER 10001:10001
# What runs unless a command is given. It lets in those with a token (CATCHALL_TOKENS), or everybody (CATCHALL_OPEN=yes).
CMD ["catchall", "--data", "/data/catchall.db", "--listen", "0.0.0.0:8080", "--ops-listen", "0.0.0.0:9080"]
EXPOSE 8080 9080
