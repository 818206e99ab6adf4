//! Tests of positions in HTML.

use super::*;

/// Where the value stands in `source` there is `{}`.
fn write(source: &str, value: &str) -> Result<String, &'static str> {
    let mut state = HtmlState::default();
    let mut out = String::new();
    for (index, fixed) in source.split("{}").enumerate() {
        if index > 0 {
            out.push_str(&state.value(value)?);
        }
        state.raw(fixed)?;
        out.push_str(fixed);
    }
    state.end().map(|()| out)
}

const ATTACKS: [&str; 12] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "\" onmouseover=\"alert(1)",
    "</td><script>x",
    "<!--",
    "-->",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "x onclick=alert(1)",
    "`",
    "</title><script>alert(1)</script>",
];

#[test]
fn text_and_attributes_cannot_be_left() {
    for source in [
        "<p>{}</p>",
        "<td class=\"{}\">x</td>",
        "<td class='{}'>x</td>",
        "<img alt=\"{}\" src=\"https://a.example/\">",
        "<a href=\"https://a.example/?q={}\">x</a>",
        "<a href='/x/{}'>x</a>",
        "<title>{}</title>",
        "1 < 2 {}",
        "<div data-x=\"{}\" aria-label='{}'>",
        "<!-- fixed --><!DOCTYPE html><b>{}</b>",
        "<style>a>b { color: red } </style><p>{}</p>",
    ] {
        for attack in ATTACKS {
            let fixed: String = source.split("{}").collect();
            let written = write(source, attack).expect(source);
            for sign in ['<', '>', '"', '\''] {
                let count = |text: &str| text.matches(sign).count();
                assert_eq!(count(&written), count(&fixed), "{sign} in {written}");
            }
        }
    }
}

#[test]
fn a_url_in_an_attribute_has_to_be_one() {
    let link = "<a href=\"{}\">x</a>";
    let written = write(link, "https://a.example/?a=1&b='2'");
    assert_eq!(
        written.as_deref(),
        Ok("<a href=\"https:&#x2f;&#x2f;a.example&#x2f;?a=1&amp;b=%272%27\">x</a>")
    );
    assert!(write(link, "/runs/1").is_ok());
    for bad in
        ["javascript:alert(1)", " JAVASCRIPT:x", "java\nscript:x", "data:x", "//e.example", ""]
    {
        assert!(write(link, bad).is_err(), "{bad:?}");
        assert!(write(&link.replace("href", "src"), bad).is_err(), "{bad:?}");
        assert!(write(&link.replace('"', "'"), bad).is_err(), "{bad:?}");
    }
    for source in [
        "<a href=\"javascript:{}\">",
        "<a href=\"javascript:x\">",
        "<a href=\"JavaScript&colon;{}\">",
        "<a href=\" javascript:{}\">",
        "<a href=\"&#106;avascript:{}\">",
        "<a href=javascript:x>",
        "<a href=\"https://{}\">",
        "<a href=\"//{}\">",
        "<a href=\"{}:x\">",
    ] {
        assert!(write(source, "alert(1)").is_err(), "{source}");
    }
}

#[test]
fn styles_take_plain_words() {
    let bar = "<div style=\"width: {}%\">";
    for word in ["50", "12.5", "#ff0000", "red"] {
        assert!(write(bar, word).is_ok(), "{word}");
    }
    for bad in ["1;x:y", "url(x)", "expression(x)", "\\28", "", "a b", "\"", &"a".repeat(33)] {
        assert!(write(bar, bad).is_err(), "{bad}");
    }
}

#[test]
fn positions_that_no_value_may_have() {
    for source in [
        "<{}>",
        "</{}>",
        "<p{}>",
        "<p {}>",
        "<p {}=\"x\">",
        "<p class={}>",
        "<p class=x{}>",
        "<p class= {}>",
        "<!-- {} -->",
        "<!DOCTYPE {}>",
        "<style>{}</style>",
        "<style>p { color: {} }</style>",
        "<img srcset=\"{}\">",
        "<meta http-equiv=\"refresh\" content=\"{}\">",
        "<td unknown=\"{}\">",
    ] {
        let planned = source.split_once("{}").map(|(before, _)| {
            let mut state = HtmlState::default();
            state.raw(before).and_then(|()| state.plan(Origin::Variable))
        });
        assert_eq!(planned, Some(Err(NOT_HERE)), "{source}");
        assert!(write(source, "x").is_err(), "{source}");
    }
}

#[test]
fn html_that_no_mail_has() {
    for source in [
        "<script>x</script>",
        "<SCRIPT src=x>",
        "<script/x>",
        "<iframe src=\"https://a.example/\"></iframe>",
        "<svg onload=x>",
        "<img src=\"/x\" onerror=\"x\">",
        "<img src=\"/x\" ONERROR=x>",
        "<body onload>",
        "<a href=\"/\"onclick=\"x\">",
        "<p srcdoc=\"x\">",
        "<base href=\"https://a.example/\">",
        "<p",
        "<p class=\"",
        "<!-- x",
        "<!-->x",
        "<!--->x",
        "<!-- x --!> y -->",
        "<?php ?>",
        "</ x>",
        "<p \"x\">",
        "<p a<b>",
    ] {
        assert!(write(source, "").is_err(), "{source}");
    }
}

#[test]
fn html_that_mails_have() {
    for source in [
        "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0//EN\" \"http://www.w3.org/x.dtd\">",
        "<!--[if mso]><table><tr><td width=600><![endif]--><p>x</p>",
        "<![if !mso]><p>x</p><![endif]>",
        "<meta charset=utf-8><meta name=\"viewport\" content=\"width=device-width\">",
        "<style type=\"text/css\">@media (max-width: 1px) { a > b { color: red } }</style >",
        "<table border=0 cellpadding='0'><tr><td>&nbsp;</td></tr></table>",
        "<br/><br /><img src=\"cid:logo\" alt=\"\"/><o:p></o:p>",
        "<a href=\"mailto:a@b.example?subject=x\">x</a><a href=\"#top\" target=\"_blank\">y</a>",
        "<a href=\"https://a.example/?a=1&amp;b=2\">x</a>",
        "<a href=\"\">x</a>",
        "a < b, 1 <2, <= and &lt;",
    ] {
        assert_eq!(write(source, "").as_deref(), Ok(source));
    }
}
