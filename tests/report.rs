//! The page of runs.

mod program;

use program::weftc;

#[test]
fn runs_stand_side_by_side_in_one_file_that_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for (name, lr) in [("a<b", 1e-3), ("second", 2e-3)] {
        let out = folder.path().join(name);
        std::fs::create_dir(&out).unwrap();
        // Long enough that curves are thinned; the last line has broken off.
        let line = |k: i32| {
            let outcome = if k == 7 { "skipped" } else { "updated" };
            let loss = if k == 7 { "null".into() } else { format!("{}", 5.0 / f64::from(k).sqrt()) };
            format!(
                "{{\"step\":{k},\"loss\":{loss},\"grad_norm\":0.5,\"lr\":{lr},\"tokens\":100,\"seconds\":0.5,\
                 \"outcome\":\"{outcome}\"}}\n"
            )
        };
        let lines: String = (1..=20_000).map(line).collect();
        std::fs::write(out.join("metrics.jsonl"), lines + "{\"step\":20").unwrap();
        let token = |text: &str, h: f64| serde_json::json!({ "text": text, "answer": true, "entropy": h, "beta": 1.5, "rate": 0.5, "masked": h > 1.0, "loss": null, "weight": 2.0 });
        let bins = vec![serde_json::json!({ "tokens": 100, "rate": 50.0, "masked": 45 })];
        let samples = [[token("<b>", 0.5), token("two", 2.0)]];
        let tokens = serde_json::json!({ "bins": bins, "step": 20_000, "samples": samples });
        std::fs::write(out.join("tokens.json"), tokens.to_string()).unwrap();
        let said = |step: u64, answer: &str| {
            let line = serde_json::json!({ "step": step, "sample": 1, "prompt": "1 + 1?", "answer": answer, "reference": "two", "tokens": [] });
            format!("{line}\n")
        };
        let said = [said(0, "<i>"), said(500, "one"), said(1000, "two!")].concat() + "{\"step\":2000";
        std::fs::write(out.join("samples.jsonl"), said).unwrap();
        std::fs::write(out.join("run.toml"), format!("lr = {lr:?}\nseed = 0\n")).unwrap();
    }
    let (code, _, errors) = weftc(&["report", &path("a<b"), &path("second"), "-o", &path("report.html")]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(html.len() < 200_000, "{} bytes", html.len());
    assert!(["http:", "https:", "src=", "@import", "url(", "NaN", "a<b"].iter().all(|w| !html.contains(w)));
    // Forty-five of a hundred where fifty were due: one standard error of 0.05.
    assert!(html.contains("<td>0.5000</td><td>0.4500</td><td>-1.0</td>"));
    assert!(
        html.contains("--h:25%") && html.contains("title=\"H 2 nats, beta 1.5, t 0.5, masked, weight 2\">two</span>")
    );
    assert!(html.contains("title=\"H 0.5 nats, beta 1.5, t 0.5, not masked (would weigh 2)\">&lt;b&gt;</span>"));
    let said = ["1 + 1?", "&lt;i&gt;", "two!", "two"].map(|t| format!("<td class=\"said\">{t}</td>")).concat();
    assert!(html.contains(&said) && html.contains("before training") && html.contains("after 1000 steps"));
    assert!(html.contains("<th scope=\"row\">500</th><td class=\"said\">one</td>"));
    // Two curves, each over its points, in each of four charts; and two keys.
    assert_eq!((html.matches("<figure>").count(), html.matches("<polyline").count()), (4, 2 * 4 * 2 - 2 + 2));
    assert!(
        html.contains("<tr class=\"differs\"><th scope=\"row\">lr (differs)</th><td>0.001</td><td>0.002</td></tr>")
    );
    assert!(html.contains("<td>20000</td><td>1</td><td>0</td>"), "steps, skipped, empty");
    in_a_browser(&folder.path().join("report.html"));
    let (code, _, errors) = weftc(&["report", &path("nothing"), "-o", &path("other.html")]);
    assert!(code == Some(2) && errors.contains("there is no metrics.jsonl"), "{code:?}: {errors}");
}

/// As much as runs may leave of tokens and samples, many times over: the page stays under 2 MB.
#[test]
fn the_page_of_many_long_runs_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..8).map(|k| folder.path().join(format!("run{k}")).display().to_string()).collect();
    let token = serde_json::json!({ "text": "\"<&>\"", "answer": true, "entropy": 1.23456789, "beta": 1.23456789,
        "rate": 0.123456789, "masked": true, "loss": 1.23456789, "weight": 12.3456789 });
    let samples = vec![vec![token; 1024]; 3];
    let tokens = serde_json::json!({ "bins": [], "step": 1, "samples": samples }).to_string();
    let said: String = (0..400)
        .map(|k| {
            let text = "<&>".repeat(4000);
            let line = serde_json::json!({ "step": k / 4, "sample": k % 4, "prompt": text, "answer": text, "reference": text });
            format!("{line}\n")
        })
        .collect();
    for name in &names {
        std::fs::create_dir(name).unwrap();
        let file = |file: &str, text: &str| std::fs::write(std::path::Path::new(name).join(file), text).unwrap();
        let line = |k: i32| {
            format!(
                "{{\"step\":{k},\"loss\":{0},\"grad_norm\":{0},\"lr\":{0},\"eval_loss\":{0},\"tokens\":{k},\
                 \"seconds\":0.5,\"outcome\":\"updated\"}}\n",
                1.0 / f64::from(k)
            )
        };
        file("metrics.jsonl", &(1..5000).map(line).collect::<String>());
        file("tokens.json", &tokens);
        file("samples.jsonl", &said);
    }
    for runs in [&names[..1], &names[..]] {
        let page = folder.path().join("page.html");
        let words: Vec<&str> = runs.iter().map(String::as_str).collect();
        let (code, _, errors) = weftc(&[&["report", "-o", page.to_str().unwrap()][..], &words].concat());
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        let size = std::fs::metadata(&page).unwrap().len();
        assert!(size < 2_000_000, "{size} bytes of {} runs", runs.len());
    }
}

/// Opens the page where there is a Chromium: it draws, and nothing is logged. The page forbids itself every request
/// (its content security policy), so that one would be logged.
fn in_a_browser(page: &std::path::Path) {
    let run = |name: &str| {
        let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"];
        let profile = format!("--user-data-dir={}", page.with_file_name("browser").display());
        std::process::Command::new(name).args(flags).arg(profile).arg(format!("file://{}", page.display())).output()
    };
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let Some(output) = names.iter().find_map(|name| run(name).ok()) else {
        println!("skipped: there is none of {}", names.join(", "));
        return;
    };
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(dom.contains("<figure>") && dom.contains("Training loss"), "{log}");
    assert!(!log.contains("CONSOLE"), "{log}");
}
