# chute in a container: docker build -t chute . && docker run --read-only -v chute:/var/lib/chute -v "$PWD/in:/srv/inbox:ro" chute
#
# The daemon runs as uid 10001 and writes only below /var/lib/chute (ledger, quarantine, and the database unless it is elsewhere).

FROM debian:bookworm-slim AS build
# What the base has already must not be shipped a second time.
RUN find /lib/ /usr/lib/ -name '*.so*' -printf '%f\n' | sort -u > /base-libraries
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    gcc libc6-dev meson ninja-build pkg-config libuv1-dev libcsv-dev libsqlite3-dev libyaml-dev libjson-c-dev \
    libxxhash-dev zlib1g-dev libisal-dev libzstd-dev libmicrohttpd-dev uthash-dev \
    libcurl4-openssl-dev libssl-dev libpq-dev libarchive-dev liblzma-dev libbz2-dev nettle-dev ca-certificates > /dev/null
COPY . /src
WORKDIR /src
RUN meson setup /build --prefix=/usr --buildtype=release -Db_lto=true -Dstrip=true -Dtests=false -Dwerror=true \
    && ninja -C /build && meson install -C /build --destdir /out --no-rebuild --quiet --tags runtime
# The shared libraries it needs beyond the base, each with its licence: linked ones, and libcurl with libcrypto, and libpq,
# which it loads itself when a configuration needs them; and the certificates that are believed.
RUN set -e; \
    { ldd /out/usr/bin/chute; \
      for name in libcurl.so.4 libpq.so.5; do \
          file="$(ldconfig -p | awk -v name=$name '$1 == name { print $NF; exit }')"; echo "$name => $file"; ldd "$file"; \
      done; } | sort -u > /needed; \
    awk '$2 == "=>" { print $3 }' /needed | while read -r library; do \
        ! grep -qxF "$(basename "$library")" /base-libraries || continue; \
        install -D -m 644 -s "$(readlink -f "$library")" "/out/usr/lib/chute/$(basename "$library")"; \
        file=$(readlink -f "$library"); package=$({ dpkg -S "$file" || dpkg -S "${file#/usr}"; } 2>/dev/null | cut -d: -f1 | head -n 1); \
        install -D -m 644 "/usr/share/doc/$package/copyright" "/out/usr/share/doc/$package/copyright"; \
    done; \
    install -D -m 644 LICENSE /out/usr/share/doc/chute/copyright; \
    install -d /out/etc/ssl; cp -rL /etc/ssl/certs /out/etc/ssl/certs; \
    install -D -m 644 /usr/share/doc/ca-certificates/copyright /out/usr/share/doc/ca-certificates/copyright; \
    install -D -m 644 deploy/chute.yaml /out/etc/chute/chute.yaml; \
    install -d -o 10001 -g 10001 -m 700 /out/var/lib/chute; \
    install -d /out/srv/inbox /out/etc/ld.so.conf.d; echo /usr/lib/chute > /out/etc/ld.so.conf.d/chute.conf

FROM debian:bookworm-slim
COPY --from=build /out/ /
# `chute version` fails the build if a library is missing after all.
RUN ldconfig && rm -f /var/cache/ldconfig/aux-cache && chute version \
    && echo 'chute:x:10001:10001:chute:/var/lib/chute:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'chute:x:10001:' >> /etc/group
USER 10001:10001
WORKDIR /var/lib/chute
VOLUME /var/lib/chute
# exit 0 while the daemon answers and its ledger is writable
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["chute", "status", "--live", "--state", "/var/lib/chute"]
# chute handles TERM itself and starts no processes, so it may be process 1
ENTRYPOINT ["chute"]
CMD ["run", "-c", "/etc/chute/chute.yaml"]
