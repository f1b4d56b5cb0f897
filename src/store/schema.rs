//! The schema: the migrations of this build, and the check that a database has them.

use std::sync::LazyLock;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{PgConnection, SqlSafeStr};

/// SQLSTATE of a query for a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";

/// The schema this build needs: the files in `migrations/`, in order. They are listed here because the macro
/// that would find them compiles the driver, including TLS, a second time.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "ledger", include_str!("../../migrations/0001_ledger.sql")),
        migration(2, "retention", include_str!("../../migrations/0002_retention.sql")),
        migration(3, "room", include_str!("../../migrations/0003_room.sql")),
        migration(4, "watermarks", include_str!("../../migrations/0004_watermarks.sql")),
        migration(5, "terms", include_str!("../../migrations/0005_terms.sql")),
        migration(6, "moves", include_str!("../../migrations/0006_moves.sql")),
        migration(7, "statuses", include_str!("../../migrations/0007_statuses.sql")),
        migration(8, "relay", include_str!("../../migrations/0008_relay.sql")),
        migration(9, "administration", include_str!("../../migrations/0009_administration.sql")),
        migration(10, "was", include_str!("../../migrations/0010_was.sql")),
    ])
});

/// Why a database does not fit this build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum SchemaError {
    #[error("the schema is missing: run catchall-migrate")]
    Missing,
    #[error("the schema is at version {found} and this build needs {needed}: run catchall-migrate")]
    Behind { found: i64, needed: i64 },
    #[error("migration {0} differs from the one in this build: the database belongs to another build")]
    Foreign(i64),
}

/// What each role may do with the tables, for roles that exist.
const GRANTS: &str = include_str!("../../postgres/grants.sql");

/// Applies the missing migrations, and grants the roles what they need of the tables.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), MigrateError> {
    MIGRATIONS.run(&mut *connection).await?;
    sqlx::raw_sql(GRANTS).execute(connection).await?;
    Ok(())
}

/// Fails unless the database has the schema this build needs.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let applied = applied_migrations(connection).await?;
    compare(&applied).map_err(|error| sqlx::Error::Configuration(error.into()))
}

/// The version and the checksum of each migration in the database; empty if nothing was ever migrated.
async fn applied_migrations(connection: &mut PgConnection) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
    let applied =
        sqlx::query_as("select version, checksum from _sqlx_migrations where success order by version")
            .fetch_all(connection)
            .await;
    match applied {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            Ok(Vec::new())
        }
        applied => applied,
    }
}

/// The database must have every migration of this build, unchanged. It may have later ones too, because a
/// fleet is upgraded schema first.
fn compare(applied: &[(i64, Vec<u8>)]) -> Result<(), SchemaError> {
    let found = applied.last().ok_or(SchemaError::Missing)?.0;
    let needed = MIGRATIONS.iter().last().map_or(0, |migration| migration.version);
    for migration in MIGRATIONS.iter() {
        match applied.iter().find(|(version, _)| *version == migration.version) {
            None => return Err(SchemaError::Behind { found, needed }),
            Some((version, checksum)) if **checksum != *migration.checksum => {
                return Err(SchemaError::Foreign(*version));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_good_when_it_has_all_of_this_build_and_perhaps_more() {
        let mut applied: Vec<(i64, Vec<u8>)> =
            MIGRATIONS.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect();
        let needed = applied.last().unwrap().0;
        assert_eq!(compare(&applied), Ok(()));
        applied.push((needed + 1, vec![1]));
        assert_eq!(compare(&applied), Ok(()));
        applied[0].1[0] ^= 1;
        assert_eq!(compare(&applied), Err(SchemaError::Foreign(1)));
        assert_eq!(compare(&applied[1..]), Err(SchemaError::Behind { found: needed + 1, needed }));
        assert_eq!(compare(&[]), Err(SchemaError::Missing));
    }
}
