//! The MRR month by month, and what moved it.

use std::str::FromStr;

use chrono::{DateTime, Datelike, Months, NaiveDate, Utc};
use nexus_core::money::{Currency, Micros};

/// What a movement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was there when the history began.
    Opening,
    /// The account had never paid before.
    New,
    /// It had paid before, and then nothing.
    Reactivation,
    /// It pays more.
    Expansion,
    /// It pays less.
    Contraction,
    /// It pays nothing any more.
    Churn,
}

/// A word that is no kind of a movement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no kind of movement")]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        Ok(match word {
            "opening" => Self::Opening,
            "new" => Self::New,
            "reactivation" => Self::Reactivation,
            "expansion" => Self::Expansion,
            "contraction" => Self::Contraction,
            "churn" => Self::Churn,
            _ => return Err(UnknownKind(word.to_owned())),
        })
    }
}

/// Movements of one kind in one month, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// First day of the month; `None`: before the months that are looked at.
    pub month: Option<NaiveDate>,
    /// What they are.
    pub kind: Kind,
    /// By how much the MRR is higher.
    pub delta: Micros,
}

/// Revenue of one calendar month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MonthlyRevenue {
    /// First day of the month.
    pub month: NaiveDate,
    /// MRR at its end.
    pub mrr: Micros,
    /// MRR that was there when the history began.
    pub opening: Micros,
    /// MRR of accounts that had never paid before.
    pub new: Micros,
    /// MRR of accounts that pay again.
    pub reactivation: Micros,
    /// MRR gained from accounts that paid less before.
    pub expansion: Micros,
    /// MRR lost with accounts that go on paying less.
    pub contraction: Micros,
    /// MRR lost with accounts that pay nothing any more.
    pub churn: Micros,
    /// Overage charged, less what was credited.
    pub overage: Micros,
}

/// Revenue in one currency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revenue {
    /// Months, oldest first.
    pub months: Vec<MonthlyRevenue>,
    /// When the history of the MRR begins, if accounts paid before.
    pub begins: Option<DateTime<Utc>>,
    /// The currency.
    pub currency: Currency,
    /// Currencies that plans have prices in.
    pub currencies: Vec<String>,
}

/// The first days of the last `count` UTC months, oldest first; that of `now` is the last one.
pub fn months(now: DateTime<Utc>, count: u32) -> Vec<NaiveDate> {
    let this = now.date_naive().with_day(1).expect("every month has a first day");
    (0..count).rev().filter_map(|ago| this.checked_sub_months(Months::new(ago))).collect()
}

/// Each month with what moved the MRR in it. What is of other months is left out, but for the MRR of the beginning.
pub fn history(
    months: &[NaiveDate],
    moved: &[Moved],
    overage: &[(NaiveDate, Micros)],
) -> Vec<MonthlyRevenue> {
    let sum = |month: Option<NaiveDate>, kind: Option<Kind>| -> i64 {
        let fits = |m: &&Moved| m.month == month && kind.is_none_or(|kind| m.kind == kind);
        moved.iter().filter(fits).map(|m| m.delta.0).sum()
    };
    let mut mrr = sum(None, None);
    let of_month = |month: &NaiveDate| {
        mrr += sum(Some(*month), None);
        let gained = |kind| Micros(sum(Some(*month), Some(kind)));
        let lost = |kind| Micros(-sum(Some(*month), Some(kind)));
        MonthlyRevenue {
            month: *month,
            mrr: Micros(mrr),
            opening: gained(Kind::Opening),
            new: gained(Kind::New),
            reactivation: gained(Kind::Reactivation),
            expansion: gained(Kind::Expansion),
            contraction: lost(Kind::Contraction),
            churn: lost(Kind::Churn),
            overage: Micros(overage.iter().filter(|(of, _)| of == month).map(|(_, micros)| micros.0).sum()),
        }
    };
    months.iter().map(of_month).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().expect("a day")
    }

    #[test]
    fn months_go_back_over_the_turn_of_the_year() {
        let now = "2026-02-28T23:59:59Z".parse().expect("a time");
        assert_eq!(months(now, 3), [day("2025-12-01"), day("2026-01-01"), day("2026-02-01")]);
        assert_eq!(months("2026-03-31T00:00:00Z".parse().expect("a time"), 1), [day("2026-03-01")]);
    }

    #[test]
    fn a_month_ends_with_what_was_before_and_what_moved() {
        let (january, february) = (day("2026-01-01"), day("2026-02-01"));
        let moved = |month, kind, delta| Moved { month, kind, delta: Micros(delta) };
        let history = history(
            &[january, february],
            &[
                moved(None, Kind::Opening, 1_000),
                moved(None, Kind::Churn, -400),
                moved(Some(january), Kind::New, 50),
                moved(Some(january), Kind::Churn, -20),
                moved(Some(february), Kind::Reactivation, 20),
                moved(Some(february), Kind::Expansion, 7),
                moved(Some(february), Kind::Contraction, -3),
                moved(Some(day("2026-03-01")), Kind::New, 1_000_000),
            ],
            &[(february, Micros(12)), (day("2025-12-01"), Micros(99))],
        );
        let zero = MonthlyRevenue {
            month: january,
            mrr: Micros(630),
            opening: Micros(0),
            new: Micros(50),
            reactivation: Micros(0),
            expansion: Micros(0),
            contraction: Micros(0),
            churn: Micros(20),
            overage: Micros(0),
        };
        let february = MonthlyRevenue {
            month: february,
            mrr: Micros(654),
            new: Micros(0),
            reactivation: Micros(20),
            expansion: Micros(7),
            contraction: Micros(3),
            churn: Micros(0),
            overage: Micros(12),
            ..zero
        };
        assert_eq!(history, [zero, february]);
    }
}
