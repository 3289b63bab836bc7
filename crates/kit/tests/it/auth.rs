use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{TimeDelta, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use nexus_core::id::EcoId;
use nexus_kit::{
    auth::{
        AuthConfigError, AuthError, Authenticator, Caller, Scope, VerifiedKey, service_token, user_token,
    },
    config::AuthArgs,
    validate::Violations,
};
use secrecy::SecretString;
use serde_json::{Value, json};

const USER_SECRET: &str = "the-secret-of-users-0123456789-abcdef";
const SERVICE_SECRET: &str = "the-secret-of-services-0123456789-abcdef";
const RSA: &str = include_str!("keys/rsa.pem");
const RSA_PUBLIC: &str = include_str!("keys/rsa.pub.pem");
const EC: &str = include_str!("keys/ec.pem");
const EC_PUBLIC: &str = include_str!("keys/ec.pub.pem");
const ED: &str = include_str!("keys/ed.pem");
const ED_PUBLIC: &str = include_str!("keys/ed.pub.pem");

fn args() -> AuthArgs {
    AuthArgs {
        jwt_secret: Some(USER_SECRET.into()),
        jwt_issuer: "nexus".into(),
        jwt_audience: None,
        jwt_jwks: None,
        jwt_public_key: None,
        admin_eco_ids: " eco_admin , eco_boss ".into(),
        service_token_secret: SERVICE_SECRET.into(),
        open_reflection: true,
        open_health: true,
    }
}

fn authenticator() -> Authenticator {
    Authenticator::new(&args()).expect("good settings")
}

fn authenticate(authenticator: &Authenticator, token: &str) -> Result<Caller, AuthError> {
    authenticator.authenticate(Some(&format!("Bearer {token}")))
}

fn claims() -> Value {
    json!({"ecoId": "eco_a", "email": "a@example.com", "iss": "nexus", "exp": in_an_hour()})
}

fn in_an_hour() -> i64 {
    (Utc::now() + TimeDelta::hours(1)).timestamp()
}

fn hs256(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .expect("a token")
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn user(caller: Result<Caller, AuthError>) -> (String, bool) {
    match caller {
        Ok(Caller::User { eco_id, admin, .. }) => (eco_id.to_string(), admin),
        other => panic!("not a user: {other:?}"),
    }
}

#[test]
fn a_users_token_names_the_account_and_whether_it_is_an_admins() {
    let a = authenticator();
    assert_eq!(user(authenticate(&a, &hs256(&claims(), USER_SECRET))), ("eco_a".into(), false));
    assert_eq!(
        user(authenticate(&a, &hs256(&with("ecoId", json!("eco_boss")), USER_SECRET))),
        ("eco_boss".into(), true)
    );
}

#[test]
fn tokens_that_are_expired_foreign_unsigned_or_incomplete_are_refused() {
    let a = authenticator();
    let without = |key: &str| {
        let mut c = claims();
        c.as_object_mut().expect("an object").remove(key);
        hs256(&c, USER_SECRET)
    };
    let none = {
        let header = BASE64.encode(json!({"alg": "none", "typ": "JWT"}).to_string());
        format!("{header}.{}.", BASE64.encode(claims().to_string()))
    };
    let critical = {
        let header =
            BASE64.encode(json!({"alg": "HS256", "typ": "JWT", "crit": ["b64"], "b64": true}).to_string());
        let signed = format!("{header}.{}", BASE64.encode(claims().to_string()));
        let key = EncodingKey::from_secret(USER_SECRET.as_bytes());
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a signature");
        format!("{signed}.{signature}")
    };
    let tampered = {
        let good = hs256(&claims(), USER_SECRET);
        let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
        parts[1] = BASE64.encode(with("ecoId", json!("eco_admin")).to_string());
        parts.join(".")
    };
    let bad = [
        ("expired", hs256(&with("exp", json!(Utc::now().timestamp() - 1)), USER_SECRET)),
        ("not yet valid", hs256(&with("nbf", json!(in_an_hour())), USER_SECRET)),
        ("wrong issuer", hs256(&with("iss", json!("elsewhere")), USER_SECRET)),
        ("another secret", hs256(&claims(), "another-secret-0123456789-abcdefghij")),
        ("no exp", without("exp")),
        ("no iss", without("iss")),
        ("no ecoId", without("ecoId")),
        ("an ecoId that is none", hs256(&with("ecoId", json!("admin")), USER_SECRET)),
        ("alg none", none),
        ("a critical extension", critical),
        ("tampered", tampered),
        ("no token", "x".into()),
        ("empty", String::new()),
    ];
    for (what, token) in bad {
        assert_eq!(authenticate(&a, &token).map(|c| format!("{c:?}")), Err(AuthError::Invalid), "{what}");
    }
    assert_eq!(a.authenticate(None).map(|c| format!("{c:?}")), Err(AuthError::Missing));
    assert_eq!(a.authenticate(Some("Basic YTpi")).map(|c| format!("{c:?}")), Err(AuthError::Invalid));
}

#[test]
fn public_keys_verify_their_own_algorithm_only() {
    let cases = [
        (RSA_PUBLIC, Algorithm::RS256, EncodingKey::from_rsa_pem(RSA.as_bytes()).expect("a key")),
        (EC_PUBLIC, Algorithm::ES256, EncodingKey::from_ec_pem(EC.as_bytes()).expect("a key")),
        (ED_PUBLIC, Algorithm::EdDSA, EncodingKey::from_ed_pem(ED.as_bytes()).expect("a key")),
    ];
    for (public, algorithm, private) in cases {
        let only_public = AuthArgs { jwt_secret: None, jwt_public_key: Some(public.into()), ..args() };
        let a = Authenticator::new(&only_public).expect("good settings");
        let good = encode(&Header::new(algorithm), &claims(), &private).expect("a token");
        assert_eq!(user(authenticate(&a, &good)), ("eco_a".into(), false), "{algorithm:?}");
        // Key confusion: the public key, which everybody knows, used as an HS256 secret.
        for secret in [public, public.trim()] {
            assert!(
                authenticate(&a, &hs256(&claims(), secret)).is_err(),
                "{algorithm:?} confused with HS256"
            );
        }
        assert!(authenticate(&a, &hs256(&claims(), USER_SECRET)).is_err(), "HS256 is not configured");
    }
}

#[test]
fn a_token_is_for_the_audience_where_the_settings_name_one() {
    let any = authenticator();
    let ours = Authenticator::new(&AuthArgs { jwt_audience: Some("nexus".into()), ..args() });
    let ours = ours.expect("good settings");
    for (audience, is_ours) in [
        (json!("nexus"), true),
        (json!(["shop", "nexus"]), true),
        (json!("shop"), false),
        (json!(["shop"]), false),
        (json!([]), false),
        (Value::Null, false),
    ] {
        let token = hs256(&with("aud", audience.clone()), USER_SECRET);
        assert!(authenticate(&any, &token).is_ok(), "{audience}");
        assert_eq!(authenticate(&ours, &token).is_ok(), is_ours, "{audience}");
    }
    assert!(authenticate(&ours, &hs256(&claims(), USER_SECRET)).is_err(), "none");
    let soon = Utc::now() + TimeDelta::hours(1);
    let eco_id = EcoId::parse("eco_a").expect("an id");
    let token = user_token(&USER_SECRET.into(), "nexus", Some("nexus"), &eco_id, None, soon);
    assert!(authenticate(&ours, &token.expect("a token")).is_ok());
    let none = AuthArgs { jwt_audience: Some(String::new()), ..args() };
    let none = Authenticator::new(&none).expect("good settings");
    assert!(authenticate(&none, &hs256(&claims(), USER_SECRET)).is_ok(), "an empty setting is none");
}

#[test]
fn a_token_of_another_type_is_not_a_users() {
    let a = authenticator();
    for (typ, is_users) in [
        (None, true),
        (Some("JWT"), true),
        (Some("at+jwt"), true),
        (Some("application/at+JWT"), true),
        (Some("logout+jwt"), false),
        (Some("secevent+jwt"), false),
        (Some("dpop+jwt"), false),
        (Some(""), false),
    ] {
        let header = Header { typ: typ.map(str::to_owned), ..Header::new(Algorithm::HS256) };
        let token = encode(&header, &claims(), &EncodingKey::from_secret(USER_SECRET.as_bytes()));
        assert_eq!(authenticate(&a, &token.expect("a token")).is_ok(), is_users, "{typ:?}");
    }
}

#[test]
fn a_token_ends_at_some_time() {
    let a = authenticator();
    for never in [i64::MAX, i64::MAX / 1_000] {
        assert!(authenticate(&a, &hs256(&with("exp", never.into()), USER_SECRET)).is_err(), "{never}");
    }
}

#[test]
fn a_jwk_set_is_chosen_from_by_key_id() {
    let pair = EncodingKey::from_ed_pem(ED.as_bytes()).expect("a key");
    let x = {
        let der: String = ED_PUBLIC.lines().filter(|l| !l.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(der).expect("base64");
        BASE64.encode(&der[der.len() - 32..])
    };
    let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "one", "use": "sig"}]});
    let a = Authenticator::new(&AuthArgs { jwt_secret: None, jwt_jwks: Some(set.to_string()), ..args() })
        .expect("good");
    let token = |kid: Option<&str>| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
        encode(&header, &claims(), &pair).expect("a token")
    };
    assert!(authenticate(&a, &token(Some("one"))).is_ok());
    assert!(authenticate(&a, &token(None)).is_ok());
    assert!(authenticate(&a, &token(Some("two"))).is_err());
}

#[test]
fn a_service_token_carries_its_scopes_and_nothing_else_passes_for_one() {
    let a = authenticator();
    let soon = Utc::now() + TimeDelta::hours(1);
    let token = |secret: &str| {
        service_token(&SecretString::from(secret), "cron", &[Scope::BillingRun], soon).expect("a token")
    };
    let caller = authenticate(&a, &token(SERVICE_SECRET)).expect("a service");
    assert!(
        caller.has_scope(Scope::BillingRun) && !caller.has_scope(Scope::UsageWrite) && !caller.is_admin()
    );
    assert!(authenticate(&a, &token(USER_SECRET)).is_err(), "users' secret must not sign service tokens");
    let as_user = user_token(
        &SecretString::from(SERVICE_SECRET),
        "nexus",
        None,
        &EcoId::parse("eco_a").expect("an id"),
        None,
        soon,
    );
    assert!(authenticate(&a, &as_user.expect("a token")).is_err(), "nor the other way round");
}

#[test]
fn the_scope_admin_includes_the_others_and_users_have_none() {
    let admin = Caller::Service { name: "ops".into(), scopes: vec![Scope::Admin] };
    assert!(Scope::ALL.iter().all(|s| admin.has_scope(*s)));
    let user = Caller::User { eco_id: EcoId::parse("eco_a").expect("an id"), email: None, admin: true };
    assert!(user.require_scope(Scope::UsageWrite).is_err(), "an admin's JWT does not record");
}

#[test]
fn a_user_reaches_only_the_own_account() {
    let me = Caller::User { eco_id: EcoId::parse("eco_a").expect("an id"), email: None, admin: false };
    let account = |caller: &Caller, requested: &str| {
        caller.account(requested, &[Scope::UsageCheck]).map_err(|s| s.code())
    };
    assert_eq!(account(&me, "").map(|id| id.to_string()), Ok("eco_a".into()));
    assert_eq!(account(&me, "eco_b"), Err(tonic::Code::PermissionDenied));
    let service = Caller::Service { name: "s".into(), scopes: vec![Scope::UsageCheck] };
    assert_eq!(account(&service, "eco_b").map(|id| id.to_string()), Ok("eco_b".into()));
    assert_eq!(account(&service, ""), Err(tonic::Code::InvalidArgument));
    let other = Caller::Service { name: "s".into(), scopes: vec![Scope::BillingRun] };
    assert_eq!(account(&other, "eco_b"), Err(tonic::Code::PermissionDenied));
    // A bad id is told together with the rest of the request; that a call is not allowed, alone.
    let mut all = Violations::one("page_size", "must not be negative");
    let mut among =
        |caller: &Caller| caller.account_among("acct", &[Scope::UsageCheck], &mut all).map_err(|s| s.code());
    assert_eq!(among(&service), Ok(None));
    assert_eq!(among(&me), Err(tonic::Code::PermissionDenied));
    let fields: Vec<_> = all.0.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["page_size", "eco_id"]);
}

#[test]
fn bad_settings_are_named() {
    let problem = |args: AuthArgs| Authenticator::new(&args).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(problem(AuthArgs { jwt_secret: Some("short".into()), ..args() }).contains("JWT_SECRET"));
    assert!(
        problem(AuthArgs { service_token_secret: "short".into(), ..args() }).contains("SERVICE_TOKEN_SECRET")
    );
    assert!(problem(AuthArgs { admin_eco_ids: "eco_a,bob".into(), ..args() }).contains("`bob`"));
    assert!(
        problem(AuthArgs { jwt_public_key: Some("/nowhere".into()), ..args() }).contains("JWT_PUBLIC_KEY")
    );
    assert!(problem(AuthArgs { jwt_jwks: Some("{}".into()), ..args() }).contains("JWT_JWKS"));
    let same = AuthArgs { jwt_secret: Some(SERVICE_SECRET.into()), ..args() };
    assert!(matches!(Authenticator::new(&same), Err(AuthConfigError::SameSecret)));
    let nothing = AuthArgs { jwt_secret: None, ..args() };
    assert!(matches!(Authenticator::new(&nothing), Err(AuthConfigError::NoUserKey)));
}

#[test]
fn a_key_without_scopes_may_do_everything_and_with_some_only_those() {
    let mut key = VerifiedKey {
        key_id: "eco_api_0123456789012345678901".to_owned(),
        eco_id: EcoId::parse("eco_a").expect("an id"),
        scopes: Vec::new(),
        test_mode: false,
    };
    let may = |key: &VerifiedKey, scope| key.require_scope(scope).is_ok();
    assert!(may(&key, Scope::UsageWrite) && may(&key, Scope::UsageCheck));
    key.scopes = vec!["reports.read".to_owned(), "usage.check".to_owned()];
    assert!(!may(&key, Scope::UsageWrite) && may(&key, Scope::UsageCheck));
    assert_eq!(key.account("").ok(), EcoId::parse("eco_a").ok());
    assert!(key.account("eco_a").is_ok() && key.account("eco_b").is_err());
}
