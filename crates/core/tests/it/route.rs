use nexus_core::route::template;

#[test]
fn ids_become_placeholders_and_words_stay() {
    for (path, expected) in [
        ("/v1/users/42", "/v1/users/{id}"),
        ("/v1/users/42/keys/7?x=1", "/v1/users/{id}/keys/{id}"),
        ("/orders/3fa85f64-5717-4562-b3fc-2c963f66afa6", "/orders/{id}"),
        ("/customers/cus_9s6XKzkNRiz8i3", "/customers/{id}"),
        ("/blobs/da39a3ee5e6b4b0d3255bfef95601890afd80709", "/blobs/{id}"),
        // Base 62 with few digits, base 64.
        ("/customers/cus_NffrFeUfNV2Hib", "/customers/{id}"),
        ("/keys/xQzKbWmTfLpRsVdYhJ2ncG", "/keys/{id}"),
        ("/files/V1StGXR8_Z5jdHi6B-myT", "/files/{id}"),
        ("/auth/oauth2CallbackHandler", "/auth/oauth2CallbackHandler"),
        ("/nexus.usage.v1.UsageService/GetCurrentUsage", "/nexus.usage.v1.UsageService/GetCurrentUsage"),
        ("/blog/2013-11-05-my-first-post-x", "/blog/2013-11-05-my-first-post-x"),
        ("/acme.Api/ListTop10ByOrgId", "/acme.Api/ListTop10ByOrgId"),
        ("/acme.Api/getOAuth2TokenByIdV1", "/acme.Api/getOAuth2TokenByIdV1"),
        ("/assets/JetBrainsMono2Regular", "/assets/JetBrainsMono2Regular"),
        ("/v1/users/{id}", "/v1/users/{id}"),
        ("/api/v2/search", "/api/v2/search"),
        ("/presentations/logstash-monitorama-2013/images", "/presentations/logstash-monitorama-2013/images"),
        ("/internationalization", "/internationalization"),
        ("/", "/"),
    ] {
        assert_eq!(template(path), expected, "{path}");
    }
}

#[test]
fn a_template_of_a_template_is_itself() {
    for path in ["/a/12/b", "/x?y", "/orders/3fa85f64-5717-4562-b3fc-2c963f66afa6/items/9"] {
        let once = template(path).into_owned();
        assert_eq!(template(&once), once);
    }
}
