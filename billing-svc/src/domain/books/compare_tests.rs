use chrono::TimeZone;
use nexus_core::{money::MICROS, period::Period};

use super::*;

const CHARGE: Uuid = Uuid::from_u128(7);

fn period() -> Period {
    let day = |month| Utc.with_ymd_and_hms(2026, month, 5, 10, 0, 0).single().expect("a time");
    Period { start: day(3), end: day(4) }
}

fn now() -> DateTime<Utc> {
    period().start + TimeDelta::days(20)
}

fn row(status: ChargeStatus, item_id: Option<&str>) -> LedgerRow {
    LedgerRow {
        attempt: 1,
        eco_id: "eco_a".to_owned(),
        period: period(),
        amount: Micros(5 * MICROS),
        amount_minor: 500,
        currency: "USD".to_owned(),
        customer: "cus_a".to_owned(),
        description: "API overage".to_owned(),
        calls: Some("5000".to_owned()),
        status,
        item_id: item_id.map(str::to_owned),
        recheck_time: None,
        created: period().start,
        take_back_time: None,
        is_invoiced: false,
    }
}

fn made(item_id: &str) -> LedgerRow {
    row(ChargeStatus::Succeeded, Some(item_id))
}

fn item(item_id: &str) -> BookItem {
    let metadata = [
        ("eco_id", "eco_a".to_owned()),
        ("overage_calls", "5000".to_owned()),
        ("billing_period_start", "2026-03-05T10:00:00Z".to_owned()),
        ("billing_period_end", "2026-04-05T10:00:00Z".to_owned()),
        (CHARGE_ID, CHARGE.to_string()),
    ];
    BookItem {
        item_id: item_id.to_owned(),
        customer: "cus_a".to_owned(),
        subscription: None,
        amount_minor: 500,
        currency: "USD".to_owned(),
        description: "API overage".to_owned(),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        invoice_id: None,
        created: now(),
    }
}

fn home(customers: &[&str]) -> Home {
    let customers = customers.iter().map(|id| (*id).to_owned()).collect();
    Home { customers, unclaimed: Vec::new(), currency: "USD".to_owned() }
}

fn kinds(rows: &[LedgerRow], items: &[BookItem]) -> Vec<(Kind, i64, Option<Repair>)> {
    kinds_at(Some(&home(&["cus_a"])), rows, items)
}

fn kinds_at(home: Option<&Home>, rows: &[LedgerRow], items: &[BookItem]) -> Vec<(Kind, i64, Option<Repair>)> {
    let found = compare(CHARGE, rows, items, home, now());
    found.into_iter().map(|(difference, repair)| (difference.kind, difference.amount.0, repair)).collect()
}

#[test]
fn what_is_the_same_on_both_sides_is_no_difference() {
    assert_eq!(kinds(&[made("ii_1")], &[item("ii_1")]), []);
    let attempts = [row(ChargeStatus::Superseded, None), LedgerRow { attempt: 2, ..made("ii_1") }];
    assert_eq!(kinds(&attempts, &[item("ii_1")]), []);
    assert_eq!(kinds(&[row(ChargeStatus::Failed, None)], &[]), []);
}

#[test]
fn each_way_of_being_altered_has_its_name() {
    let altered = |alter: fn(&mut BookItem)| {
        let mut item = item("ii_1");
        alter(&mut item);
        let found = kinds(&[made("ii_1")], &[item]);
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].0, found[0].1)
    };
    assert_eq!(altered(|i| i.amount_minor = 501), (Kind::ItemAmountDiffers, 10_000));
    assert_eq!(altered(|i| i.customer = "cus_b".to_owned()), (Kind::ItemWrongCustomer, 5 * MICROS));
    assert_eq!(altered(|i| i.currency = "EUR".to_owned()), (Kind::ItemWrongCurrency, 0));
    assert_eq!(altered(|i| i.description.push('!')), (Kind::ItemTextDiffers, 0));
    let set = |key: &'static str, value: &str| {
        let mut item = item("ii_1");
        item.metadata.insert(key.to_owned(), value.to_owned());
        kinds(&[made("ii_1")], &[item])
    };
    assert_eq!(set("eco_id", "eco_b"), [(Kind::ItemWrongAccount, 0, None)]);
    assert_eq!(set("billing_period_end", "2026-04-06T10:00:00Z"), [(Kind::ItemWrongPeriod, 0, None)]);
    assert_eq!(set("billing_period_start", "soon"), [(Kind::ItemWrongPeriod, 0, None)]);
    assert_eq!(set("overage_calls", "4999"), [(Kind::ItemTextDiffers, 0, None)]);
    assert_eq!(set(CHARGE_ID, &Uuid::nil().to_string()), [(Kind::ItemWrongCharge, 0, None)]);
}

#[test]
fn an_item_that_is_not_there_is_missing_unless_another_stands_for_it() {
    let fail = Some(Repair::Fail { attempt: 1 });
    assert_eq!(kinds(&[made("ii_1")], &[]), [(Kind::ItemMissing, -5 * MICROS, fail)]);
    // Somebody was invoiced for it.
    let invoiced = LedgerRow { is_invoiced: true, ..made("ii_1") };
    assert_eq!(kinds(&[invoiced], &[]), [(Kind::ItemMissing, -5 * MICROS, None)]);
    let accept = Some(Repair::Accept { attempt: 1, item: item("ii_2") });
    assert_eq!(kinds(&[made("ii_1")], &[item("ii_2")]), [(Kind::ItemIdDiffers, 0, accept)]);
    // Also where it says something else of itself, which alone would hold up nothing.
    let mut labelled = item("ii_2");
    labelled.metadata.insert("eco_id".to_owned(), "eco_b".to_owned());
    let found = kinds(&[made("ii_1")], &[labelled]).into_iter().map(|(kind, ..)| kind);
    assert_eq!(found.collect::<Vec<_>>(), [Kind::ItemWrongAccount, Kind::ItemIdDiffers]);
    let moved = BookItem { customer: "cus_b".to_owned(), ..item("ii_2") };
    let delete = Some(Repair::Delete { item_id: "ii_2".to_owned() });
    assert_eq!(kinds(&[made("ii_1")], &[moved]), [(Kind::ItemWrongCustomer, 5 * MICROS, delete)]);
}

#[test]
fn another_amount_is_taken_over_unless_it_is_none_or_in_another_currency() {
    let with = |alter: fn(&mut BookItem)| {
        let mut item = item("ii_1");
        alter(&mut item);
        let found = kinds(&[made("ii_1")], std::slice::from_ref(&item));
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].2.clone(), item)
    };
    let (repair, item) = with(|item| item.amount_minor = 300);
    assert_eq!(repair, Some(Repair::Accept { attempt: 1, item }));
    assert_eq!(with(|item| item.amount_minor = 0).0, Some(Repair::Fail { attempt: 1 }));
    let delete = Some(Repair::Delete { item_id: "ii_1".to_owned() });
    assert_eq!(with(|item| item.currency = "EUR".to_owned()).0, delete);
    let on_an_invoice = |item: &mut BookItem| {
        item.currency = "EUR".to_owned();
        item.invoice_id = Some("in_1".to_owned());
    };
    assert_eq!(with(on_an_invoice).0, None);
}

#[test]
fn a_second_item_is_taken_away_only_while_nobody_was_invoiced_for_it() {
    let delete = Repair::Delete { item_id: "ii_2".to_owned() };
    let found = kinds(&[made("ii_1")], &[item("ii_1"), item("ii_2")]);
    assert_eq!(found, [(Kind::ItemDuplicated, 5 * MICROS, Some(delete))]);
    let invoiced = BookItem { invoice_id: Some("in_1".to_owned()), ..item("ii_2") };
    let second = Some(Repair::Second(invoiced.clone()));
    let found = kinds(&[made("ii_1")], &[item("ii_1"), invoiced]);
    assert_eq!(found, [(Kind::ItemDuplicated, 5 * MICROS, second)]);
}

#[test]
fn an_item_that_its_account_cannot_have_is_never_taken_over() {
    let invoiced = |item: BookItem| BookItem { invoice_id: Some("in_1".to_owned()), ..item };
    let on_b = BookItem { customer: "cus_b".to_owned(), ..item("ii_2") };
    let in_yen = BookItem { currency: "JPY".to_owned(), ..item("ii_2") };
    let amount = |item: &BookItem| amount_of(item).0;
    for stray in [on_b, in_yen] {
        let delete = Some(Repair::Delete { item_id: "ii_2".to_owned() });
        for rows in [vec![], vec![row(ChargeStatus::Failed, None)], vec![made("ii_1")]] {
            let items = |stray: &BookItem| match rows.iter().any(|row| row.item_id.is_some()) {
                true => vec![item("ii_1"), stray.clone()],
                false => vec![stray.clone()],
            };
            let found = kinds(&rows, &items(&stray));
            assert_eq!(found, [(Kind::ItemStray, amount(&stray), delete.clone())], "{rows:?}");
            let found = kinds(&rows, &items(&invoiced(stray.clone())));
            assert_eq!(found, [(Kind::ItemStray, amount(&stray), None)], "{rows:?}");
        }
        // The charge itself is elsewhere all the same.
        let found = kinds(&[], &[stray.clone(), item("ii_1")]);
        assert_eq!(found[1], (Kind::ItemExtra, 5 * MICROS, Some(Repair::Adopt(item("ii_1")))));
        // In doubt over another amount.
        let pending = LedgerRow { created: now() - TimeDelta::hours(27), ..row(ChargeStatus::Pending, None) };
        let found = kinds(&[pending], &[BookItem { amount_minor: 400, ..stray }]);
        assert_eq!((found[0].0, &found[0].2), (Kind::ChargeInDoubt, &None));
    }
    let found = kinds_at(Some(&home(&["cus_a", "cus_b"])), &[], &[item("ii_1")]);
    assert_eq!(found[0].0, Kind::ItemExtra, "of a customer that it had");
    assert_eq!(kinds_at(Some(&home(&[])), &[], &[item("ii_1")]), [(Kind::ItemStray, 5 * MICROS, None)]);
    assert_eq!(kinds_at(None, &[], &[item("ii_1")]), [(Kind::ItemOfNoAccount, 5 * MICROS, None)]);
    // On a customer whom nobody has: somebody is to say whether it was the account's.
    let nobodys = Home { unclaimed: vec!["cus_z".to_owned()], ..home(&["cus_a"]) };
    let on_z = BookItem { customer: "cus_z".to_owned(), ..item("ii_2") };
    let found = kinds_at(Some(&nobodys), &[made("ii_1")], &[item("ii_1"), on_z]);
    assert_eq!(found, [(Kind::ItemStray, 5 * MICROS, None)]);
    assert!(nobodys.may_lack("cus_z") && !nobodys.may_lack("cus_a") && !nobodys.may_lack("cus_b"));
    // Over another amount on another customer: taken away, and not taken over.
    let altered = BookItem { amount_minor: 300, customer: "cus_b".to_owned(), ..item("ii_1") };
    let delete = Some(Repair::Delete { item_id: "ii_1".to_owned() });
    assert_eq!(
        kinds(&[made("ii_1")], &[altered]),
        [(Kind::ItemAmountDiffers, -2 * MICROS, None), (Kind::ItemWrongCustomer, 5 * MICROS, delete)]
    );
}

#[test]
fn an_item_that_the_ledger_does_not_know_is_extra_and_goes_into_it_once() {
    let delete = Repair::Delete { item_id: "ii_2".to_owned() };
    assert_eq!(
        kinds(&[], &[item("ii_1"), item("ii_2")]),
        [
            (Kind::ItemExtra, 5 * MICROS, Some(Repair::Adopt(item("ii_1")))),
            (Kind::ItemDuplicated, 5 * MICROS, Some(delete)),
        ]
    );
    let succeed = Repair::Succeed { attempt: 1, item_id: "ii_1".to_owned() };
    let failed = [row(ChargeStatus::Failed, None)];
    assert_eq!(kinds(&failed, &[item("ii_1")]), [(Kind::ItemExtra, 5 * MICROS, Some(succeed))]);
    // With another amount than was written down it is taken over as it is.
    let other = BookItem { amount_minor: 700, ..item("ii_1") };
    let accept = Repair::Accept { attempt: 1, item: other.clone() };
    assert_eq!(kinds(&failed, &[other]), [(Kind::ItemExtra, 7 * MICROS, Some(accept))]);
    // Over nothing it holds nothing.
    assert_eq!(kinds(&failed, &[BookItem { amount_minor: 0, ..item("ii_1") }]), []);
}

#[test]
fn what_a_run_has_in_hand_is_no_difference_unless_it_is_left_lying() {
    let pending =
        |hours| LedgerRow { created: now() - TimeDelta::hours(hours), ..row(ChargeStatus::Pending, None) };
    assert_eq!(kinds(&[pending(25)], &[item("ii_1")]), []);
    assert_eq!(kinds(&[pending(25)], &[]), []);
    assert_eq!(kinds(&[pending(26)], &[item("ii_1")]), [(Kind::ChargeInDoubt, 0, None)]);
    // Replaced day by day it is in doubt since its first attempt.
    let replaced = LedgerRow { status: ChargeStatus::Superseded, recheck_time: Some(now()), ..pending(27) };
    let next = LedgerRow { attempt: 2, ..pending(3) };
    assert_eq!(kinds(&[replaced, next], &[]), [(Kind::ChargeInDoubt, 0, None)]);
    let other = BookItem { amount_minor: 400, ..item("ii_1") };
    let accept = Repair::Accept { attempt: 1, item: other.clone() };
    assert_eq!(kinds(&[pending(26)], &[other]), [(Kind::ChargeInDoubt, -MICROS, Some(accept))]);
    let begun = |hours| LedgerRow { take_back_time: Some(now() - TimeDelta::hours(hours)), ..made("ii_1") };
    assert_eq!(kinds(&[begun(25)], &[]), []);
    assert_eq!(kinds(&[begun(26)], &[]), [(Kind::ChargeInDoubt, 0, None)]);
    let replaced = |hours| {
        let recheck_time = Some(now() - TimeDelta::hours(hours));
        let old = LedgerRow { recheck_time, ..row(ChargeStatus::Superseded, None) };
        kinds(&[old, LedgerRow { attempt: 2, ..made("ii_2") }], &[item("ii_1"), item("ii_2")])
    };
    assert_eq!(replaced(1), []);
    let delete = Repair::Delete { item_id: "ii_1".to_owned() };
    assert_eq!(replaced(27), [(Kind::ItemDuplicated, 5 * MICROS, Some(delete))]);
}
