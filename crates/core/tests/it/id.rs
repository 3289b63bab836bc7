use nexus_core::id::{ApiKeyText, EcoId, is_api_key_id};
use rand::{SeedableRng, rngs::StdRng};
use uuid::Uuid;

#[test]
fn account_ids_have_their_form() {
    for good in ["eco_a", "eco_203.0.113.9", "eco_2001:db8::1", "eco_A-b_c.9"] {
        assert!(EcoId::parse(good).is_ok(), "{good}");
    }
    let long = format!("eco_{}", "x".repeat(61));
    for bad in ["", "eco_", "eko_a", "eco_a b", "eco_ü", "eco_a/b", "eco_'--", &long] {
        assert!(EcoId::parse(bad).is_err(), "{bad}");
    }
    assert!(EcoId::parse(EcoId::random(&mut StdRng::seed_from_u64(1)).as_str()).is_ok());
}

#[test]
fn a_key_matches_the_hash_of_its_own_secret_only() {
    let mut rng = StdRng::seed_from_u64(1);
    let (key, other) = (ApiKeyText::random(&mut rng), ApiKeyText::random(&mut rng));
    assert!(key.matches(&key.secret_sha256()));
    assert!(!key.matches(&other.secret_sha256()));
    assert!(!key.matches(&[]));
}

#[test]
fn a_key_reads_back_and_its_debug_form_hides_the_secret() {
    let key = ApiKeyText::random(&mut StdRng::seed_from_u64(2));
    let text = key.expose();
    let read = ApiKeyText::parse(&text).expect("its own text");
    assert!(read.matches(&key.secret_sha256()) && is_api_key_id(read.key_id()));
    let secret = text.split_once('.').expect("two halves").1;
    assert!(!format!("{key:?}").contains(secret));
}

#[test]
fn texts_that_are_no_keys_are_refused() {
    let id = "eco_api_0123456789012345678901";
    for bad in [
        "",
        id,
        "eco_api_short.0123456789012345678901",
        &format!("{id}.short"),
        &format!("{id}.0123456789012345678901x"),
    ] {
        assert!(ApiKeyText::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_derived_key_depends_on_every_part_and_repeats() {
    let account = EcoId::parse("eco_a").expect("an id");
    let request = Uuid::from_u128(7);
    let key = |secret: &[u8], account: &EcoId, request| ApiKeyText::derive(secret, account, request).expose();
    let first = key(b"s", &account, request);
    assert_eq!(first, key(b"s", &account, request));
    assert_ne!(first, key(b"t", &account, request));
    assert_ne!(first, key(b"s", &EcoId::parse("eco_b").expect("an id"), request));
    assert_ne!(first, key(b"s", &account, Uuid::from_u128(8)));
}

#[test]
fn a_key_keeps_its_id_with_a_new_secret() {
    let key = ApiKeyText::derive(b"s", &EcoId::parse("eco_a").expect("an id"), Uuid::from_u128(7));
    let other = ApiKeyText::random(&mut StdRng::seed_from_u64(3));
    let rotated = |secret: &[u8], key: &ApiKeyText, request| {
        let text =
            ApiKeyText::derive_for(secret, key.key_id(), Uuid::from_u128(request)).expect("its own id");
        assert_eq!(text.key_id(), key.key_id());
        assert!(ApiKeyText::parse(&text.expose()).is_ok());
        text.secret_sha256()
    };
    let first = rotated(b"s", &key, 7);
    assert_eq!(first, rotated(b"s", &key, 7));
    for differs in
        [rotated(b"t", &key, 7), rotated(b"s", &other, 7), rotated(b"s", &key, 8), key.secret_sha256()]
    {
        assert_ne!(first, differs);
    }
    let mut rng = StdRng::seed_from_u64(4);
    let random = ApiKeyText::random_for(key.key_id(), &mut rng).expect("its own id");
    assert!(random.key_id() == key.key_id() && !random.matches(&key.secret_sha256()));
    assert!(ApiKeyText::random_for("eco_api_short", &mut rng).is_err());
    assert!(ApiKeyText::derive_for(b"s", &key.expose(), Uuid::nil()).is_err());
}
