use chrono::NaiveDate;
use nexus_core::id::EcoId;
use nexus_kit::{db, turn::Turns, validate::Violations};
use sqlx::PgPool;

use super::require_account;
use crate::{
    domain::export::{ExportRange, HourCursor, HourlyUsage},
    error::Error,
    store,
};

/// Rows that are read at once.
pub const PAGE_ROWS: i64 = 1_000;

/// An export under way. Between two pages it holds a place in the order and nothing else: no connection, no snapshot, no
/// turn, however long its reader takes. By the order of the key no row comes twice, and the end is fixed, so that it ends
/// while rows are added.
pub struct Export {
    pool: PgPool,
    turns: Turns,
    range: ExportRange,
    after: HourCursor,
    done: bool,
}

impl Export {
    /// Begins an export of an account that exists. Its end is now at the latest, by the database's clock. What can only be
    /// told in part is refused: nobody should take it for the whole.
    pub async fn begin(pool: &PgPool, turns: &Turns, range: ExportRange) -> Result<Self, Error> {
        let now = {
            let _turn = turns.take(&range.eco_id).await.ok_or(Error::TooManyWait)?;
            let mut connection = db::acquire(pool).await?;
            require_account(&mut connection, &range.eco_id).await?;
            if let Some(day) = store::usage_hourly::last_day_without(&mut connection, &range).await? {
                return Err(gone(day).into());
            }
            store::accounts_now::time(&mut connection).await?
        };
        Ok(Self {
            pool: pool.clone(),
            turns: turns.clone(),
            after: HourCursor::before(range.start),
            range: ExportRange { end: range.end.min(now), ..range },
            done: false,
        })
    }

    /// The account.
    pub fn eco_id(&self) -> &EcoId {
        &self.range.eco_id
    }

    /// The next rows, in a turn of the account; none: there are no more.
    pub async fn page(&mut self) -> Result<Vec<HourlyUsage>, Error> {
        if self.done {
            return Ok(Vec::new());
        }
        let rows = {
            let _turn = self.turns.take(&self.range.eco_id).await.ok_or(Error::TooManyWait)?;
            let mut connection = db::acquire(&self.pool).await?;
            store::usage_hourly::page(&mut connection, &self.range, &self.after, PAGE_ROWS).await?
        };
        self.done = (rows.len() as i64) < PAGE_ROWS;
        if let Some(last) = rows.last() {
            self.after = last.place.clone();
        }
        Ok(rows)
    }
}

/// The hours of a day with usage are not kept any more.
fn gone(day: NaiveDate) -> Violations {
    let kept = day.succ_opt().unwrap_or(day);
    Violations::one(
        "start_time",
        format!("must be {kept} or later: the hours of {day} are not kept any more"),
    )
}
