//! The options of a request for a stream, and how they are sent: as headers of `connect`, or as the body of `POST`.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use moorline_proto::api::OpenStream;
use moorline_proto::bounds::{DEADLINE_MAX_S, DEFAULT_DEADLINE, IDEMPOTENCY_KEY_CHARS, REASON_CHARS, WAIT_MAX_S};
use moorline_proto::id::{Feature, ServiceName};
use moorline_proto::names::{DATA_HEADER, DEADLINE_HEADER, FEATURES_HEADER, IDEMPOTENCY_KEY_HEADER, REASON_HEADER, WAIT_HEADER};
use moorline_proto::text::{Data, Text};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// The relay's own timeout response should arrive before this side gives up.
const RESPONSE_MARGIN: Duration = Duration::from_secs(10);

/// See `Open::MAX_WAIT`.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(WAIT_MAX_S);
/// See `Open::MIN_DEADLINE`.
pub(crate) const MIN_DEADLINE: Duration = Duration::from_secs(1);
/// See `Open::MAX_DEADLINE`.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(DEADLINE_MAX_S);

/// Everything but the device and the service. All of it is optional.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamOptions {
    deadline: Option<Duration>,
    wait: Option<Duration>,
    pub(crate) reason: Option<Text<REASON_CHARS>>,
    pub(crate) data: Option<Data>,
    pub(crate) features: Vec<Feature>,
    pub(crate) key: Option<Key>,
}

/// An idempotency key: repeating a request with the same key does not open a second stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

/// Text that is not an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to {IDEMPOTENCY_KEY_CHARS} visible ASCII characters")]
pub struct KeyError;

impl Key {
    /// A key chosen by the caller, who can repeat the request after a restart.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        let fits = (1..=IDEMPOTENCY_KEY_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Self(text)) } else { Err(KeyError) }
    }

    /// A new key of 128 random bits.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    /// The key as it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("a key is visible ASCII")
    }
}

impl StreamOptions {
    /// Spans are brought into their ranges here, so that no sum of them can overflow.
    pub(crate) fn set_wait(&mut self, wait: Duration) {
        self.wait = Some(wait.min(MAX_WAIT));
    }

    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = Some(deadline.clamp(MIN_DEADLINE, MAX_DEADLINE));
    }

    /// How long the relay can take to answer.
    pub(crate) fn limit(&self) -> Duration {
        self.wait.unwrap_or_default() + self.deadline.unwrap_or(DEFAULT_DEADLINE) + RESPONSE_MARGIN
    }

    /// The headers of `connect`.
    pub(crate) fn headers(&self, key: &Key) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY_HEADER), key.header());
        let mut set = |name: &'static str, value: String| {
            let value = HeaderValue::from_str(&value).expect("numbers, base64, names and percent-encoded text are visible ASCII");
            headers.insert(HeaderName::from_static(name), value);
        };
        if let Some(deadline) = self.deadline {
            set(DEADLINE_HEADER, deadline.as_secs().to_string());
        }
        if let Some(wait) = self.wait {
            set(WAIT_HEADER, wait.as_secs().to_string());
        }
        if let Some(reason) = &self.reason {
            set(REASON_HEADER, utf8_percent_encode(reason.as_str(), NON_ALPHANUMERIC).to_string());
        }
        if let Some(data) = &self.data {
            set(DATA_HEADER, data.to_base64());
        }
        if !self.features.is_empty() {
            let names: Vec<&str> = self.features.iter().map(Feature::as_str).collect();
            set(FEATURES_HEADER, names.join(","));
        }
        headers
    }

    /// The body of `POST`.
    pub(crate) fn body(&self, service: &ServiceName) -> OpenStream {
        OpenStream {
            service: service.clone(),
            deadline_s: self.deadline.map(|deadline| deadline.as_secs()),
            wait_s: self.wait.map(|wait| wait.as_secs()),
            reason: self.reason.clone(),
            data: self.data.clone(),
            features: self.features.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> StreamOptions {
        StreamOptions {
            deadline: Some(Duration::from_secs(30)),
            wait: Some(Duration::from_secs(600)),
            reason: Some(Text::new("größer, 50%").unwrap()),
            data: Some(Data::new([0, 255]).unwrap()),
            features: vec!["a".parse().unwrap(), "b.2".parse().unwrap()],
            key: None,
        }
    }

    #[test]
    fn each_option_has_its_own_header() {
        let headers = full().headers(&Key::new("k1").unwrap());
        let of = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(of("idempotency-key"), "k1");
        assert_eq!((of("moorline-deadline"), of("moorline-wait")), ("30".to_owned(), "600".to_owned()));
        assert_eq!(of("moorline-reason"), "gr%C3%B6%C3%9Fer%2C%2050%25");
        assert_eq!((of("moorline-data"), of("moorline-features")), ("AP8=".to_owned(), "a,b.2".to_owned()));
    }

    #[test]
    fn omitted_options_are_left_to_the_relay() {
        let options = StreamOptions::default();
        assert_eq!(options.headers(&Key::random()).len(), 1);
        assert_eq!(serde_json::to_string(&options.body(&"ssh".parse().unwrap())).unwrap(), r#"{"service":"ssh"}"#);
        assert_eq!(options.limit(), Duration::from_secs(70));
        assert_eq!(full().limit(), Duration::from_secs(640));
    }

    #[test]
    fn spans_out_of_range_are_clamped() {
        let mut options = StreamOptions::default();
        options.set_wait(Duration::MAX);
        options.set_deadline(Duration::MAX);
        assert_eq!((options.wait, options.deadline), (Some(MAX_WAIT), Some(MAX_DEADLINE)));
        assert_eq!(options.limit(), MAX_WAIT + MAX_DEADLINE + RESPONSE_MARGIN);
        options.set_deadline(Duration::ZERO);
        assert_eq!(options.deadline, Some(MIN_DEADLINE));
    }

    #[test]
    fn keys_are_128_random_bits_or_the_callers_own() {
        let (one, other) = (Key::random(), Key::random());
        assert!(one != other && one.as_str().len() == 32);
        assert_eq!(Key::new("a b"), Err(KeyError));
        assert_eq!(Key::new(""), Err(KeyError));
        assert_eq!(Key::new("x".repeat(129)), Err(KeyError));
    }
}
