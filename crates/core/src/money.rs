//! Money: integer micros (millionths) of a currency, never floats.
//!
//! A price is micros per N units. What an account owes for a period is exact in micros; what is charged is
//! whole minor units (cents). While a period is open the due amount is rounded down, so that less than a
//! cent is carried to the next charge; at final settlement it is rounded half up, once.

use std::{fmt, str::FromStr};

/// An amount in millionths of a currency unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub i64);

/// Micros of one currency unit.
pub const MICROS: i64 = 1_000_000;

/// Arithmetic left the range of an `i64` of micros (9.2 trillion units).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("amount of money out of range")]
pub struct OutOfRange;

/// A text that is no amount: not a number as JSON has it, out of range, or with more than six decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a number with at most six decimals")]
pub struct InvalidAmount;

impl FromStr for Micros {
    type Err = InvalidAmount;

    /// Reads currency units as JSON writes numbers (`12.5`, `-3`, `1e2`), exactly.
    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| InvalidAmount)?),
            None => (text, 0),
        };
        let (sign, digits) = match mantissa.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, mantissa),
        };
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let has_digits = !whole.is_empty() && (digits.len() == whole.len() || !decimals.is_empty());
        if !has_digits || !whole.bytes().chain(decimals.bytes()).all(|c| c.is_ascii_digit()) {
            return Err(InvalidAmount);
        }
        // Without the zeros at either end there are few digits, or it is out of range.
        let all = format!("{whole}{decimals}");
        let significant = all.trim_end_matches('0');
        let Ok(zeros) = i32::try_from(all.len() - significant.len()) else { return Err(InvalidAmount) };
        let Ok(places) = i32::try_from(decimals.len()) else { return Err(InvalidAmount) };
        let significant = significant.trim_start_matches('0');
        if significant.is_empty() {
            return Ok(Micros(0));
        }
        let digits: i64 = significant.parse().map_err(|_| InvalidAmount)?;
        let power = exponent.checked_add(zeros - places + 6).ok_or(InvalidAmount)?;
        let scale =
            u32::try_from(power).ok().and_then(|power| 10_i64.checked_pow(power)).ok_or(InvalidAmount)?;
        digits.checked_mul(sign * scale).map(Micros).ok_or(InvalidAmount)
    }
}

/// A text that is no currency code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an ISO 4217 code of three letters that Stripe charges in")]
pub struct InvalidCurrency;

/// An ISO 4217 currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// US dollar.
    pub const USD: Currency = Currency(*b"USD");

    /// The code, in capitals.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("three ASCII letters")
    }

    /// Micros of one minor unit, the smallest amount Stripe charges: 10,000 (a cent) for most currencies,
    /// 1,000,000 for those without decimals. Source: Stripe, "Supported currencies": zero-decimal
    /// currencies; three-decimal ones, which are charged in multiples of ten; and the special cases ISK and
    /// UGX, which have no decimals, but whose amounts are written with two that are always 00. (HUF and TWD
    /// are special in payouts only.)
    pub fn minor_unit(&self) -> MinorUnit {
        match &self.0 {
            b"BIF" | b"CLP" | b"DJF" | b"GNF" | b"JPY" | b"KMF" | b"KRW" | b"MGA" | b"PYG" | b"RWF"
            | b"VND" | b"VUV" | b"XAF" | b"XOF" | b"XPF" => MinorUnit { micros: MICROS, step: 1 },
            b"BHD" | b"JOD" | b"KWD" | b"OMR" | b"TND" => MinorUnit { micros: 1_000, step: 10 },
            b"ISK" | b"UGX" => MinorUnit { micros: 10_000, step: 100 },
            _ => MinorUnit { micros: 10_000, step: 1 },
        }
    }
}

impl FromStr for Currency {
    type Err = InvalidCurrency;
    fn from_str(text: &str) -> Result<Self, InvalidCurrency> {
        let code: [u8; 3] = text.as_bytes().try_into().map_err(|_| InvalidCurrency)?;
        if !code.iter().all(u8::is_ascii_alphabetic) {
            return Err(InvalidCurrency);
        }
        Ok(Self(code.map(|c| c.to_ascii_uppercase())))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Smallest amount that can be charged in a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinorUnit {
    /// Micros of one minor unit.
    micros: i64,
    /// Minor units an amount must be a multiple of.
    step: i64,
}

impl MinorUnit {
    fn chargeable(&self) -> i64 {
        self.micros * self.step
    }

    /// Whole chargeable units, rounded down.
    pub fn floor(&self, amount: Micros) -> Micros {
        Micros(amount.0.div_euclid(self.chargeable()) * self.chargeable())
    }

    /// Whole chargeable units, half a unit rounded up.
    pub fn round_half_up(&self, amount: Micros) -> Result<Micros, OutOfRange> {
        let half_more = amount.0.checked_add(self.chargeable() / 2).ok_or(OutOfRange)?;
        Ok(self.floor(Micros(half_more)))
    }

    /// The amount in minor units, as Stripe takes it; the amount must be whole.
    pub fn to_minor(&self, whole: Micros) -> i64 {
        debug_assert_eq!(whole.0 % self.micros, 0);
        whole.0 / self.micros
    }

    /// An amount that Stripe states in minor units; `None`: out of range.
    pub fn from_minor(&self, minor: i64) -> Option<Micros> {
        minor.checked_mul(self.micros).map(Micros)
    }
}

/// Price of overage: `micros` for `per_units` units; 0 micros: overage is not billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPrice {
    /// Micros of the plan's currency.
    pub micros: i64,
    /// Units they buy, at least 1.
    pub per_units: i64,
}

impl UnitPrice {
    /// Exact cost of so many units, rounded down to a micro (prices have at most as many decimals as
    /// micros per unit allow; a remainder below a micro is carried because the cost is always computed
    /// from the sum of units).
    pub fn cost(&self, units: i64) -> Result<Micros, OutOfRange> {
        let exact = i128::from(units) * i128::from(self.micros) / i128::from(self.per_units);
        i64::try_from(exact).map(Micros).map_err(|_| OutOfRange)
    }
}

/// Exact cost of units at these prices. Units of one price are added up before they are multiplied, so that changes
/// to and fro do not cost fractions of a micro.
pub fn cost(priced: impl IntoIterator<Item = (UnitPrice, i64)>) -> Result<Micros, OutOfRange> {
    let mut sums: Vec<(UnitPrice, i64)> = Vec::new();
    for (price, units) in priced {
        match sums.iter_mut().find(|(known, _)| *known == price) {
            Some((_, sum)) => *sum = sum.checked_add(units).ok_or(OutOfRange)?,
            None => sums.push((price, units)),
        }
    }
    sums.into_iter().try_fold(Micros(0), |total, (price, units)| {
        total.0.checked_add(price.cost(units)?.0).map(Micros).ok_or(OutOfRange)
    })
}

/// Units beyond the included ones within a segment of a period: max(0, end - max(included, start)).
/// `included` is `None` for an unlimited plan, which has no overage.
pub fn overage_units(included: Option<i64>, count_at_start: i64, count_at_end: i64) -> i64 {
    included.map_or(0, |included| (count_at_end - included.max(count_at_start)).max(0))
}

/// What an account owes for a period in whole chargeable units: rounded down while the period is open,
/// half up at its final settlement.
pub fn due(exact: Micros, unit: MinorUnit, settled: bool) -> Result<Micros, OutOfRange> {
    if settled { unit.round_half_up(exact) } else { Ok(unit.floor(exact)) }
}
