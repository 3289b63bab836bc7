//! Names of people and companies, each pair once.

const FIRST: [&str; 24] = [
    "Amara", "Bram", "Camila", "Deniz", "Elif", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Kaia", "Liam",
    "Maya", "Nadia", "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tomas", "Uma", "Viktor", "Wanda", "Yuki",
];
const LAST: [&str; 23] = [
    "Andersson",
    "Baptiste",
    "Castillo",
    "Dvorak",
    "Eriksen",
    "Fontaine",
    "Gruber",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lindqvist",
    "Moreau",
    "Nakamura",
    "Okafor",
    "Petrov",
    "Quiroga",
    "Rossi",
    "Sato",
    "Tanaka",
    "Ullmann",
    "Varga",
    "Weber",
];
const COMPANY: [&str; 25] = [
    "Amberline",
    "Bluecove",
    "Copperfield",
    "Driftwood",
    "Eastbridge",
    "Fernhill",
    "Granite",
    "Harborview",
    "Ironwood",
    "Juniper",
    "Kestrel",
    "Lakeside",
    "Meridian",
    "Northgate",
    "Oakmont",
    "Pinecrest",
    "Quarry",
    "Ridgeway",
    "Silverpine",
    "Tidewater",
    "Umbra",
    "Vantage",
    "Westbrook",
    "Yellowtail",
    "Zephyr",
];
const TRADE: [&str; 9] =
    ["Analytics", "Freight", "Health", "Labs", "Logistics", "Media", "Payments", "Robotics", "Travel"];

/// The n-th person's first and last name. 24 and 23 have no common divisor: 552 pairs before one repeats.
pub(super) fn person(n: usize) -> (&'static str, &'static str) {
    (FIRST[n % FIRST.len()], LAST[n % LAST.len()])
}

/// The n-th company's name: 225 pairs before one repeats.
pub(super) fn company(n: usize) -> (&'static str, &'static str) {
    (COMPANY[n % COMPANY.len()], TRADE[n % TRADE.len()])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn no_name_comes_twice() {
        assert_eq!((0..100).map(super::person).collect::<HashSet<_>>().len(), 100);
        assert_eq!((0..50).map(super::company).collect::<HashSet<_>>().len(), 50);
    }
}
