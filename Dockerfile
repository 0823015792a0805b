# The program alone, from scratch: no shell, no package, no libc. The authorities that TLS trusts are compiled in; SSL_CERT_FILE names others.
#
#   docker build -t sluicegate:0.1.0 .
#   docker run --read-only --network host -e CORE_API_KEY -v sluicegate-state:/var/lib/sluicegate sluicegate:0.1.0

FROM rust:1.89-bookworm AS build
WORKDIR /src
COPY . .
RUN scripts/rootfs --release /rootfs

FROM scratch
LABEL org.opencontainers.image.title="sluicegate" \
      org.opencontainers.image.description="A local rate-limiting reverse proxy for metered, asynchronous AI APIs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /rootfs/ /
# Again, with its owner: not every builder keeps that of a directory.
COPY --from=build --chown=65532:65532 /rootfs/var/lib/sluicegate /var/lib/sluicegate
ENV SLUICEGATE_STATE_PATH=/var/lib/sluicegate
USER 65532:65532
WORKDIR /etc/sluicegate
EXPOSE 8787 8788 8789
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/sluicegate", "healthcheck"]
ENTRYPOINT ["/sluicegate"]
CMD ["run"]
