//! `STATE/seedring.db`: the tables, their version and what is done to them.
//!
//! Invariant: a database of a later version is never opened for writing, and a corrupt one is put
//! aside whole before a new one is made in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, params};

use super::files::quarantine;
use super::{NewTorrent, OpenError, StoredBan, StoredMagnet, StoredTorrent, Totals};
use crate::metainfo::selection::Wanted;
use crate::swarm::BANS_MAX;
use crate::units::InfoHash;

/// Name of the database in the state directory.
pub(super) const FILE_NAME: &str = "seedring.db";
/// Version of the tables, kept in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 1;

/// `save_path` and `was_whole` are null for torrents that were found without a database, `wanted`
/// where all files are wanted. Paths are bytes.
const TABLES: &str = "
    CREATE TABLE torrents (
        info_hash BLOB PRIMARY KEY CHECK (length(info_hash) = 20),
        save_path BLOB,
        added_at INTEGER NOT NULL,
        name TEXT NOT NULL,
        uploaded INTEGER NOT NULL DEFAULT 0,
        downloaded INTEGER NOT NULL DEFAULT 0,
        had_bytes INTEGER NOT NULL DEFAULT 0,
        was_whole INTEGER DEFAULT 0,
        wanted TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE settings (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Links whose torrents are not known yet; one that becomes known moves to the other table. A torrent
/// may be in both while its file is lost. Made beside tables of this version that were made before it.
const MAGNETS: &str = "
    CREATE TABLE IF NOT EXISTS magnets (
        info_hash BLOB PRIMARY KEY CHECK (length(info_hash) = 20),
        link TEXT NOT NULL,
        save_path BLOB NOT NULL,
        added_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// What a database holds: torrents and links in the order of adding, and settings.
type Contents = (Vec<StoredTorrent>, Vec<StoredMagnet>, BTreeMap<String, String>);

/// Made wherever it is missing: it came after the first databases of this version.
const BANS_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS bans (
        ip TEXT PRIMARY KEY,
        until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Columns that this version of the tables did not have from the beginning, and what they are. Of
/// torrents that are there already nobody knows whether they were whole.
pub(super) const LATE_COLUMNS: [(&str, &str); 3] =
    [("had_bytes", "INTEGER NOT NULL DEFAULT 0"), ("was_whole", "INTEGER"), ("wanted", "TEXT")];

/// The open database; only the writer thread has one.
pub(super) struct Database {
    connection: Connection,
}

impl Database {
    /// Opens or makes the database in `dir`. A new one, also in place of a corrupt one, takes in
    /// the torrents whose files are `present`.
    pub(super) fn open(dir: &Path, present: &BTreeSet<InfoHash>) -> Result<Self, OpenError> {
        let path = dir.join(FILE_NAME);
        match Self::try_open(&path, present) {
            Err(OpenError::Database { error, .. }) if is_corrupt(&error) => {
                tracing::error!(database = ?path, %error, "the database is corrupt");
                for suffix in ["", "-wal", "-shm"] {
                    let mut file = path.clone().into_os_string();
                    file.push(suffix);
                    let file = PathBuf::from(file);
                    if file.exists() {
                        quarantine(&file).map_err(|error| OpenError::Io { path: file, error })?;
                    }
                }
                Self::try_open(&path, present)
            }
            other => other,
        }
    }

    fn try_open(path: &Path, present: &BTreeSet<InfoHash>) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Database { path: path.to_owned(), error };
        let connection = Connection::open(path).map_err(failed)?;
        let version: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if version > VERSION {
            return Err(OpenError::Newer { path: path.to_owned(), found: version, known: VERSION });
        }
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(failed)?;
        let mut database = Self { connection };
        if version == 0 {
            database.create(present).map_err(failed)?;
        } else {
            database.complete().map_err(failed)?;
        }
        database.connection.execute_batch(BANS_TABLE).map_err(failed)?;
        database.verify().map_err(failed)?;
        Ok(database)
    }

    /// Tables and the torrents that are there already, in one transaction: a crash in between must
    /// not leave an empty table that would condemn their files.
    fn create(&mut self, present: &BTreeSet<InfoHash>) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(TABLES)?;
        transaction.execute_batch(MAGNETS)?;
        for info_hash in present {
            transaction.execute(
                "INSERT INTO torrents (info_hash, added_at, name, was_whole)
                 VALUES (?1, 0, '', NULL)",
                [info_hash.0],
            )?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()
    }

    /// Tables that were made before the latest columns of this version get them.
    fn complete(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch(MAGNETS)?;
        for (name, kind) in LATE_COLUMNS {
            let has_column: bool = self.connection.query_row(
                "SELECT EXISTS (SELECT 1 FROM pragma_table_info('torrents') WHERE name = ?1)",
                [name],
                |row| row.get(0),
            )?;
            if !has_column {
                let add = format!("ALTER TABLE torrents ADD COLUMN {name} {kind}");
                self.connection.execute_batch(&add)?;
            }
        }
        Ok(())
    }

    /// SQLite looks at every page only if asked.
    fn verify(&self) -> rusqlite::Result<()> {
        let verdict: String =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict == "ok" {
            return Ok(());
        }
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, Some(verdict)))
    }

    /// All of it.
    pub(super) fn read(&self) -> rusqlite::Result<Contents> {
        let mut torrents = self.connection.prepare(
            "SELECT info_hash, save_path, added_at, name, uploaded, downloaded, had_bytes, was_whole,
                wanted
             FROM torrents ORDER BY added_at, info_hash",
        )?;
        let torrents = torrents.query_map([], |row| {
            let save_path: Option<Vec<u8>> = row.get(1)?;
            let (info_hash, wanted): (_, Option<String>) = (InfoHash(row.get(0)?), row.get(8)?);
            let wanted = Wanted::from_stored(wanted.as_deref()).unwrap_or_else(|error| {
                tracing::error!(torrent = %info_hash, %error, "its selection is bad: all is wanted");
                Wanted::default()
            });
            Ok(StoredTorrent {
                info_hash,
                save_path: save_path.map(|bytes| OsStr::from_bytes(&bytes).into()),
                added_at: row.get(2)?,
                name: row.get(3)?,
                uploaded: row.get::<_, i64>(4)?.unsigned_abs(),
                downloaded: row.get::<_, i64>(5)?.unsigned_abs(),
                had_bytes: row.get::<_, i64>(6)?.unsigned_abs(),
                was_whole: row.get(7)?,
                wanted,
            })
        })?;
        let torrents = torrents.collect::<rusqlite::Result<_>>()?;
        let mut magnets = self.connection.prepare(
            "SELECT info_hash, link, save_path, added_at FROM magnets
             ORDER BY added_at, info_hash",
        )?;
        let magnets = magnets.query_map([], |row| {
            let save_path: Vec<u8> = row.get(2)?;
            Ok(StoredMagnet {
                info_hash: InfoHash(row.get(0)?),
                link: row.get(1)?,
                save_path: OsStr::from_bytes(&save_path).into(),
                added_at: row.get(3)?,
            })
        })?;
        let magnets = magnets.collect::<rusqlite::Result<_>>()?;
        let mut settings = self.connection.prepare("SELECT key, value FROM settings")?;
        let settings = settings.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((torrents, magnets, settings.collect::<rusqlite::Result<_>>()?))
    }

    /// All bans, also those that are over; what is no address is left out.
    pub(super) fn read_bans(&self) -> rusqlite::Result<Vec<StoredBan>> {
        let mut bans = self.connection.prepare("SELECT ip, until FROM bans")?;
        let bans = bans.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        let bans: Vec<_> = bans.collect::<rusqlite::Result<_>>()?;
        let parsed =
            bans.into_iter().map(|(ip, until)| Some(StoredBan { ip: ip.parse().ok()?, until }));
        Ok(parsed.flatten().collect())
    }

    /// Begins a group of changes; dropping it undoes them.
    pub(super) fn begin(&mut self) -> rusqlite::Result<Group<'_>> {
        Ok(Group { transaction: self.connection.transaction()? })
    }
}

/// Changes that become true together.
pub(super) struct Group<'a> {
    transaction: rusqlite::Transaction<'a>,
}

impl Group<'_> {
    pub(super) fn add(&self, torrent: &NewTorrent) -> rusqlite::Result<()> {
        let mut add = self.transaction.prepare_cached(
            "INSERT INTO torrents (info_hash, save_path, added_at, name, was_whole, wanted)
             VALUES (?1, ?2, ?3, ?4, 0, ?5)
             ON CONFLICT (info_hash) DO UPDATE SET
                save_path = ?2, name = ?4, had_bytes = 0, was_whole = 0, wanted = ?5",
        )?;
        let save_path = torrent.save_path.as_os_str().as_bytes();
        let wanted = torrent.wanted.to_stored();
        let NewTorrent { info_hash, added_at, name, .. } = torrent;
        add.execute(params![info_hash.0, save_path, added_at, name, wanted])?;
        self.remove_magnet(&torrent.info_hash)
    }

    pub(super) fn add_magnet(&self, magnet: &StoredMagnet) -> rusqlite::Result<()> {
        let mut add = self.transaction.prepare_cached(
            "INSERT INTO magnets (info_hash, link, save_path, added_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (info_hash) DO UPDATE SET link = ?2, save_path = ?3, added_at = ?4",
        )?;
        let save_path = magnet.save_path.as_os_str().as_bytes();
        add.execute(params![magnet.info_hash.0, magnet.link, save_path, magnet.added_at])?;
        Ok(())
    }

    fn remove_magnet(&self, info_hash: &InfoHash) -> rusqlite::Result<()> {
        let mut remove =
            self.transaction.prepare_cached("DELETE FROM magnets WHERE info_hash = ?1")?;
        remove.execute([info_hash.0])?;
        Ok(())
    }

    pub(super) fn remove(&self, info_hash: &InfoHash) -> rusqlite::Result<()> {
        let mut remove =
            self.transaction.prepare_cached("DELETE FROM torrents WHERE info_hash = ?1")?;
        remove.execute([info_hash.0])?;
        self.remove_magnet(info_hash)
    }

    pub(super) fn select(&self, info_hash: &InfoHash, wanted: &Wanted) -> rusqlite::Result<()> {
        let mut select = self
            .transaction
            .prepare_cached("UPDATE torrents SET wanted = ?2 WHERE info_hash = ?1")?;
        select.execute(params![info_hash.0, wanted.to_stored()])?;
        Ok(())
    }

    pub(super) fn total(&self, totals: &Totals) -> rusqlite::Result<()> {
        let mut update = self.transaction.prepare_cached(
            "UPDATE torrents SET uploaded = ?2, downloaded = ?3, had_bytes = max(had_bytes, ?4),
                was_whole = max(coalesce(was_whole, 0), ?5)
             WHERE info_hash = ?1",
        )?;
        let capped = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        update.execute(params![
            totals.info_hash.0,
            capped(totals.uploaded),
            capped(totals.downloaded),
            capped(totals.had_bytes),
            totals.was_whole
        ])?;
        Ok(())
    }

    /// Adds bans; those that are over at `now` go, and those that end first if there are too many.
    pub(super) fn ban(&self, now: i64, bans: &[StoredBan]) -> rusqlite::Result<()> {
        let mut add = self.transaction.prepare_cached(
            "INSERT INTO bans (ip, until) VALUES (?1, ?2)
             ON CONFLICT (ip) DO UPDATE SET until = max(until, ?2)",
        )?;
        for ban in bans {
            add.execute(params![ban.ip.to_string(), ban.until])?;
        }
        self.transaction.execute("DELETE FROM bans WHERE until <= ?1", [now])?;
        let limit = i64::try_from(BANS_MAX).unwrap_or(i64::MAX);
        self.transaction.execute(
            "DELETE FROM bans WHERE ip IN
             (SELECT ip FROM bans ORDER BY until DESC LIMIT -1 OFFSET ?1)",
            [limit],
        )?;
        Ok(())
    }

    pub(super) fn set(&self, key: &str, value: &str) -> rusqlite::Result<()> {
        let mut set = self.transaction.prepare_cached(
            "INSERT INTO settings (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = ?2",
        )?;
        set.execute([key, value])?;
        Ok(())
    }

    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.transaction.commit()
    }
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}
