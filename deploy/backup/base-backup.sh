#!/bin/sh
# Makes a base backup of PostgreSQL in a new folder of BACKUP_DIR, and keeps the newest KEEP of them
# with the WAL in WAL_ARCHIVE that they need. As the system user `postgres`, or with PGHOST, PGPORT
# and PGUSER. docs/restore.md says how to restore one.
set -eu
umask 077
: "${BACKUP_DIR:?the folder of the base backups}" "${WAL_ARCHIVE:?the folder of the archived WAL}"
new=$BACKUP_DIR/base-$(date --utc +%Y-%m-%dT%H%M%SZ)

# A backup without this suffix is complete. An earlier run that was cut off may have left one.
rm -rf "$BACKUP_DIR"/base-*.part
pg_basebackup --no-password --pgdata="$new.part" --format=tar --gzip --wal-method=stream --checkpoint=fast
gzip --test "$new.part"/*.gz
mv "$new.part" "$new"
echo "made $new"

ls -d "$BACKUP_DIR"/base-*Z | head --lines="-${KEEP:-7}" | while read -r old; do
  rm -r "$old"
  echo "removed $old"
done

# The oldest backup that is left says from which WAL file on it needs them.
oldest=$(ls -d "$BACKUP_DIR"/base-*Z | head --lines=1)
first=$(tar --extract --gzip --to-stdout --file="$oldest/base.tar.gz" backup_label |
  sed --quiet 's/^START WAL LOCATION: .*(file \([0-9A-F]*\))$/\1/p')
pg_archivecleanup "$WAL_ARCHIVE" "${first:?$oldest has no backup_label}"
