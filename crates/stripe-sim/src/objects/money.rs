//! Currencies, amounts in minor units, and unit amounts with up to 12 decimals. No floats.

use crate::http::error::ApiError;
use crate::http::forms::Params;

/// The currencies Stripe takes, from the list of API version `2026-09-30.endive`.
const CURRENCIES: &str = "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bif bmd bnd bob \
    brl bsd byn bwp bzd cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp \
    gel gip gmd gnf gtq gyd hkd hnl htg huf idr ils inr isk jmd jpy kes kgs khr kmf krw kyd kzt lak \
    lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mro mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd \
    pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sll sos srd std svc szl \
    thb tjs top try ttd twd tzs uah ugx usd uyu uzs vnd vuv wst xaf xcd xof xpf yer zar zmw";

/// Eight digits: the limit Stripe has for most currencies.
const MAX_AMOUNT: i64 = 99_999_999;
const DECIMALS: usize = 12;

pub(crate) fn take_currency(params: &mut Params) -> Result<Option<String>, ApiError> {
    let Some(given) = params.text("currency")? else {
        return Ok(None);
    };
    let currency = given.to_lowercase();
    if CURRENCIES.split_whitespace().any(|known| known == currency) {
        Ok(Some(currency))
    } else {
        Err(params.wrong("currency", format!("Invalid currency: {given}")))
    }
}

pub(crate) fn check_amount(amount: i128, param: &str) -> Result<i64, ApiError> {
    let within = i64::try_from(amount).ok().filter(|amount| amount.abs() <= MAX_AMOUNT);
    within.ok_or_else(|| {
        let message = format!("The amount must be between -{MAX_AMOUNT} and {MAX_AMOUNT} minor units.");
        ApiError::invalid("amount_too_large", param, message)
    })
}

/// Amounts of some currencies are multiples: of 10 of those with three decimals, of 100 of two that are written with
/// decimals they do not have.
pub(crate) fn check_step(amount: i64, currency: &str, param: &str) -> Result<(), ApiError> {
    let step = match currency {
        "bhd" | "jod" | "kwd" | "omr" | "tnd" => 10,
        "isk" | "ugx" => 100,
        _ => 1,
    };
    if amount % step == 0 {
        return Ok(());
    }
    let message = format!("Amounts in {currency} must be multiples of {step}.");
    Err(ApiError::invalid("parameter_invalid_integer", param, message))
}

/// A decimal number of minor units, exact to 12 places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnitAmount {
    /// In units of 10^-12.
    scaled: i128,
}

impl UnitAmount {
    const ONE: i128 = 1_000_000_000_000;

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(rest) => (-1, rest),
            None => (1, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let numeric = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !numeric(whole) || !numeric(fraction) || whole.len() > 12 || fraction.len() > DECIMALS {
            return None;
        }
        let scaled: i128 = format!("{whole}{fraction:0<DECIMALS$}").parse().ok()?;
        Some(Self { scaled: sign * scaled })
    }

    pub(crate) fn take(params: &mut Params, field: &str) -> Result<Option<String>, ApiError> {
        let text = params.text(field)?;
        match text.as_deref().map(Self::parse) {
            Some(None) => {
                Err(params
                    .wrong(field, format!("Invalid decimal: it may have up to {DECIMALS} decimal places.")))
            }
            _ => Ok(text),
        }
    }

    /// The amount of `quantity` units, rounded to the nearest minor unit, half away from zero.
    pub(crate) fn times(self, quantity: u64) -> Option<i128> {
        let product = self.scaled.checked_mul(i128::from(quantity))?;
        let half = if product < 0 { -Self::ONE / 2 } else { Self::ONE / 2 };
        Some(product.checked_add(half)? / Self::ONE)
    }
}

#[cfg(test)]
mod tests {
    use super::UnitAmount;

    fn amount(unit: &str, quantity: u64) -> Option<i128> {
        UnitAmount::parse(unit)?.times(quantity)
    }

    #[test]
    fn a_unit_amount_times_a_quantity_is_rounded_once_half_away_from_zero() {
        assert_eq!(amount("0.1", 5_000), Some(500));
        assert_eq!(amount("0.1", 5), Some(1));
        assert_eq!(amount("0.1", 4), Some(0));
        assert_eq!(amount("-0.1", 5), Some(-1));
        assert_eq!(amount("4900", 1), Some(4900));
        assert_eq!(amount("0.000000000001", 500_000_000_000), Some(1));
    }

    #[test]
    fn what_is_not_a_decimal_of_twelve_places_is_refused() {
        for text in ["", "-", ".", "1.", ".5", "1e3", "0.0000000000001", "1,5", "+1"] {
            assert_eq!(UnitAmount::parse(text), None, "{text}");
        }
    }
}
