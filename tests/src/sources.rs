//! The workspace's Rust sources as text that checks can read: which code is a test's, and which modules a file uses. A small lexer, not a parser.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A source file.
#[derive(Debug)]
pub struct Source {
    /// Its path from the workspace's root.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Its text with comments and literals replaced by spaces, so that only code is left. As long as `text`.
    pub code: String,
    /// Whether all of it is test code: it belongs to this package or to a `tests` folder, or its module is declared under `#[cfg(test)]`.
    pub is_test: bool,
}

impl Source {
    /// The code that is compiled without `cfg(test)`; everything else is spaces.
    pub fn product(&self) -> String {
        if self.is_test { String::new() } else { blanked(&self.code, &test_items(&self.code)) }
    }

    /// The code that is compiled for tests alone; everything else is spaces.
    pub fn test(&self) -> String {
        if self.is_test {
            return self.code.clone();
        }
        let (mut product, mut from) = (Vec::new(), 0);
        for item in test_items(&self.code) {
            product.push(from..item.start);
            from = item.end;
        }
        product.push(from..self.code.len());
        blanked(&self.code, &product)
    }
}

/// Every source file of the workspace.
///
/// # Panics
/// If the workspace cannot be read, or suspiciously few files are found.
pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace");
    let mut paths = Vec::new();
    find(root, &mut paths);
    assert!(paths.len() > 150, "only {} source files were found", paths.len());
    let mut sources: Vec<Source> = paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a source is UTF-8");
            let path = path.strip_prefix(root).expect("it was found there").to_owned();
            let is_product = path.components().any(|part| part.as_os_str() == "src") && !path.starts_with("tests");
            Source { code: code_of(&text), path, text, is_test: !is_product }
        })
        .collect();
    let declared: BTreeSet<PathBuf> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.is_test |= declared.contains(&source.path);
    }
    sources
}

fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder is read") {
        let path = entry.expect("a folder is read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `text` with comments and literals replaced by spaces, byte for byte; line ends stay.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let Some(end) = skipped(bytes, at) else {
            at += 1;
            continue;
        };
        code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8(code).expect("whole characters were replaced")
}

/// The end of the comment or literal that begins at `at`, if one does.
fn skipped(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let until = |mark: &[u8], from: usize| {
        let found = rest[from..].windows(mark.len()).position(|window| window == mark);
        found.map_or(bytes.len(), |found| at + from + found + mark.len())
    };
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let begins_a_word = at == 0 || !is_name(&bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => Some(until(b"\n", 2) - usize::from(rest.contains(&b'\n'))),
        [b'/', b'*', ..] => Some(until(b"*/", 2)),
        [b'"', ..] => Some(at + quoted(rest, b'"')),
        [b'b' | b'c', b'"', ..] if begins_a_word => Some(at + 1 + quoted(&rest[1..], b'"')),
        [b'r', b'"' | b'#', ..] | [b'b', b'r', b'"' | b'#', ..] if begins_a_word => {
            let from = rest.iter().position(|&byte| byte == b'r').unwrap_or_default() + 1;
            let hashes = rest[from..].iter().take_while(|&&byte| byte == b'#').count();
            let is_raw_string = rest.get(from + hashes) == Some(&b'"');
            is_raw_string.then(|| until(&[b"\"", &b"#".repeat(hashes)[..]].concat(), from + hashes + 1))
        }
        // A character; a lifetime has no second quote.
        [b'\'', b'\\', ..] => Some(at + quoted(rest, b'\'')),
        [b'\'', first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            (rest.get(1 + width) == Some(&b'\'')).then_some(at + width + 2)
        }
        _ => None,
    }
}

/// The length of a literal with escapes that begins with `quote`.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += 1 + usize::from(rest[at] == b'\\');
    }
    (at + 1).min(rest.len())
}

/// `code` with the bytes of these ranges replaced by spaces; line ends stay.
pub fn blanked(code: &str, ranges: &[Range<usize>]) -> String {
    let mut bytes = code.as_bytes().to_vec();
    for range in ranges {
        bytes[range.clone()].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(bytes).expect("items begin and end at ASCII")
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    items(code, "#[cfg(test)]")
}

/// Items with an attribute, each from the attribute to the `;` or the closing brace that ends the item.
pub fn items(code: &str, attribute: &str) -> Vec<Range<usize>> {
    let (mut items, mut from) = (Vec::new(), 0);
    while let Some(start) = code[from..].find(attribute).map(|found| from + found) {
        let (mut depth, mut end) = (0_usize, code.len());
        for (at, byte) in code.bytes().enumerate().skip(start + attribute.len()) {
            match byte {
                b'{' | b'[' | b'(' => depth += 1,
                b'}' | b']' | b')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(byte, b';' | b'}') {
                end = at + 1;
                break;
            }
        }
        items.push(start..end);
        from = end;
    }
    items
}

/// Files of modules that are declared under `#[cfg(test)]`.
fn test_modules(source: &Source) -> Vec<PathBuf> {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    let stem = source.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let below = if matches!(&*stem, "mod" | "lib" | "main") { folder.to_owned() } else { folder.join(stem) };
    let declared = test_items(&source.code).into_iter().filter_map(|item| {
        let name = words(&source.code[item.clone()]).skip_while(|word| *word != "mod").nth(1)?.to_owned();
        let path = source.text[item].split_once("#[path = \"").and_then(|(_, rest)| rest.split('"').next());
        Some(match path {
            Some(path) => vec![folder.join(path)],
            None => vec![below.join(format!("{name}.rs")), below.join(name).join("mod.rs")],
        })
    });
    declared.flatten().collect()
}

/// Identifiers, `::`, and every other character that is not white space.
fn words(code: &str) -> impl Iterator<Item = &str> {
    let mut rest = code;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
        let name = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let length = match name {
            0 if rest.starts_with("::") => 2,
            0 => rest.chars().next()?.len_utf8(),
            name => name,
        };
        let (word, behind) = rest.split_at(length);
        rest = behind;
        Some(word)
    })
}

/// The modules and items of its own crate that a piece of code uses, as paths from the crate's root of at most two names: `net/tls`, `core`.
/// Seen are `crate::…`, `self::…` and `super::…`, in `use` and anywhere else, one at a time or in braces. `module` is the path of the code's own
/// module, and `krate` another name of the root, if it has one.
pub fn used_paths(code: &str, module: &[&str], krate: Option<&str>) -> BTreeSet<String> {
    let words: Vec<&str> = words(code).collect();
    let mut used = BTreeSet::new();
    // The depth of braces, and that at which each inline module around the current word began, with its name.
    let (mut braces, mut inline) = (0_usize, Vec::new());
    for at in 0..words.len() {
        match words[at] {
            "mod" if words.get(at + 2) == Some(&"{") => inline.push((braces, words[at + 1])),
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                inline.pop_if(|(began, _)| *began == braces);
            }
            _ => {}
        }
        if (at > 0 && words[at - 1] == "::") || words.get(at + 1) != Some(&"::") {
            continue; // not the first name of a path
        }
        let own: Vec<&str> = module.iter().copied().chain(inline.iter().map(|(_, name)| *name)).collect();
        let supers = words[at..].chunks(2).take_while(|pair| *pair == ["super", "::"]).count();
        let (base, names) = match words[at] {
            "crate" => (&own[..0], at + 2),
            word if krate == Some(word) => (&own[..0], at + 2),
            "self" => (&own[..], at + 2),
            "super" => (&own[..own.len().saturating_sub(supers)], at + 2 * supers),
            _ => continue,
        };
        collect(base, &words[names..], &mut used);
    }
    used.remove("");
    used
}

/// The paths below `base` that begin a list of words: one path, or the paths in braces. Returns the number of words that they take.
fn collect(base: &[&str], words: &[&str], used: &mut BTreeSet<String>) -> usize {
    let mut path = base.to_vec();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if *word == "{" {
            at += 1;
            while words.get(at).is_some_and(|word| *word != "}") {
                at += collect(&path, &words[at..], used).max(1);
                at += usize::from(words.get(at) == Some(&","));
            }
            return at + 1;
        }
        if *word != "self" && *word != "*" {
            path.push(word);
        }
        at += 1;
        if words.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    used.insert(path[..path.len().min(2)].join("/"));
    // A new name, `as x`, belongs to the path.
    at + if words.get(at) == Some(&"as") { 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned(), code: code_of(text), is_test: false }
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let text = r##"let a = "crate::x { // no"; // crate::y
let b: &'a str = r#"sleep(" "#; let c = ('{', '\'', b'"', "é"); /* } */ end"##;
        let code = code_of(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(words(&code).collect::<String>(), "leta=;letb:&'astr=;letc=(,,b,);end");
    }

    #[test]
    fn test_items_end_where_they_end() {
        let text = "use a; #[cfg(test)] mod tests { fn f() { \"}\" } } use b; #[cfg(test)] #[path = \"x_tests.rs\"] mod t; use c;\n\
                    #[cfg(test)] mod deep; impl A { #[cfg(test)] fn d(&self) -> [u8; 2] { [1, 2] } fn e() {} }";
        let source = source("relay/src/x.rs", text);
        assert_eq!(words(&source.product()).collect::<String>(), "usea;useb;usec;implA{fne(){}}");
        assert!(source.test().contains("fn d") && !source.test().contains("use b"));
        let files: Vec<String> = test_modules(&source).iter().map(|path| path.display().to_string()).collect();
        let inline = ["relay/src/x/tests.rs", "relay/src/x/tests/mod.rs"];
        assert_eq!(files, [&inline[..], &["relay/src/x_tests.rs", "relay/src/x/deep.rs", "relay/src/x/deep/mod.rs"]].concat());
    }

    #[test]
    fn every_way_to_name_a_module_is_seen() {
        let code = "pub(crate) use crate::a::{b, c};\nuse crate::{\n    d::{e::{f, g}, h as i},\n    j,\n};\nfn x(y: crate::k::Y) { super::l::z(); \
                    super::super::m() }\nmod inline { use super::n; use super::super::o; } use super::{p::{q, r}, self}; use self::s; use t::super_u;";
        let used = |module: &[&str]| used_paths(code, module, None).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(used(&["own", "file"]), "a/b a/c d/e d/h j k/Y m own own/file own/l own/o own/p");
        assert_eq!(used(&["own"]), "a/b a/c d/e d/h j k/Y l/z m o own/n own/s p/q p/r");
        let library = used_paths("moorline::k::L; x::moorline::m", &[], Some("moorline"));
        assert_eq!(library.into_iter().collect::<String>(), "k/L");
    }
}
