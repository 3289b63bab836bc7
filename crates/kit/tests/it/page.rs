use nexus_kit::page;

#[test]
fn sizes_are_coerced_down_and_negative_ones_refused() {
    assert_eq!(
        [page::size(0, 50, 100), page::size(7, 50, 100), page::size(5_000, 50, 100)],
        [Ok(50), Ok(7), Ok(100)]
    );
    assert!(page::size(-1, 50, 100).is_err());
}

#[test]
fn a_token_continues_its_own_list_only() {
    let token = page::encode(&("pro", "usage"), &("eco_a".to_owned(), 5i64));
    assert_eq!(page::decode(&("pro", "usage"), &token), Ok(Some(("eco_a".to_owned(), 5i64))));
    assert_eq!(
        page::decode::<(String, i64)>(&("free", "usage"), &token),
        Err(page::BadToken),
        "another filter"
    );
    assert_eq!(page::decode::<(String, i64)>(&("pro", "usage"), "garbage!"), Err(page::BadToken));
    assert_eq!(
        page::decode::<(String, i64)>(&("pro", "usage"), &token[..token.len() - 4]),
        Err(page::BadToken)
    );
    assert_eq!(page::decode::<(String, i64)>(&("pro", "usage"), ""), Ok(None), "the first page");
}
