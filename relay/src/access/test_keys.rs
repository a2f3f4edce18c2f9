//! Keys for tests, as `openssl genpkey` and `openssl pkey -pubout` (3.0) wrote them, and tokens that can be made wrong in any way.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use moorline_proto::proof::PublicKey;
use serde_json::Value;

/// A pair of keys that nobody uses for anything else.
pub(super) struct Pair {
    private: &'static str,
    public: &'static str,
    algorithm: Algorithm,
}

pub(super) const ED25519: Pair = Pair {
    private: "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIKkmb5J/jTzAWXEwrCcuHD2QeT2miqzwTn8JOFBg/NCX\n-----END PRIVATE KEY-----\n",
    public: "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAofPx5yiKKsWpnuQFWCeIIrQJHJbuL8ErG8Pq65bLeGA=\n-----END PUBLIC KEY-----\n",
    algorithm: Algorithm::EdDSA,
};

pub(super) const OTHER_ED25519: Pair = Pair {
    private: "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIFuppvHfXj360N9hHRf12sGoBEd9d1cFXrbZ6FEWOy89\n-----END PRIVATE KEY-----\n",
    public: "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA0+mUZQdNL8zTCE7wk6fx8AWbIVq1sfvq2J4+oJenefs=\n-----END PUBLIC KEY-----\n",
    algorithm: Algorithm::EdDSA,
};

pub(super) const P256: Pair = Pair {
    private: "-----BEGIN PRIVATE KEY-----\n\
        MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgX4cp2Z7phFit03RN\n\
        MaTc9DCkC7GkHZYVN0bSTJJHlJyhRANCAASM4fSN6NwhafMZ+o56RcifTZ9hVJNk\n\
        hvgR0+QFz/cVA5EVY/Ha6sAWgqrm0oCB9Tn85Zi2djNPfMzKDv/ELVIp\n-----END PRIVATE KEY-----\n",
    public: "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjOH0jejcIWnzGfqOekXIn02fYVST\n\
        ZIb4EdPkBc/3FQORFWPx2urAFoKq5tKAgfU5/OWYtnYzT3zMyg7/xC1SKQ==\n-----END PUBLIC KEY-----\n",
    algorithm: Algorithm::ES256,
};

impl Pair {
    /// The public key, as the relay registers it.
    pub(super) fn public(&self) -> PublicKey {
        PublicKey::from_pem(self.public).unwrap()
    }

    /// The private key as its file has it.
    pub(super) fn private_pem(&self) -> &'static str {
        self.private
    }

    /// A compact JWS of exactly this header and payload, whatever their content; the signature is valid.
    pub(super) fn sign(&self, header: &Value, payload: &Value) -> String {
        let key = match self.algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(self.private.as_bytes()),
            _ => EncodingKey::from_ed_pem(self.private.as_bytes()),
        };
        let message = unsigned(header, payload);
        let signature = crypto::sign(message.as_bytes(), &key.unwrap(), self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// Header and payload of a compact JWS.
pub(super) fn unsigned(header: &Value, payload: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(payload))
}

/// The signature of a JWS by HMAC-SHA-256 with `secret`, for the attack that takes a public key as one.
pub(super) fn hmac_signed(header: &Value, payload: &Value, secret: &[u8]) -> String {
    let message = unsigned(header, payload);
    let signature = crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

/// The object with some members changed, added, or (null) removed.
pub(super) fn with(base: &Value, changes: Value) -> Value {
    let mut changed = base.clone();
    let (Some(members), Value::Object(changes)) = (changed.as_object_mut(), changes) else { return changed };
    for (name, value) in changes {
        if value.is_null() { drop(members.remove(&name)) } else { drop(members.insert(name, value)) }
    }
    changed
}
