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
        let token = |text: &str, h: f64| serde_json::json!({ "text": text, "answer": true, "entropy": h, "rate": 0.5, "masked": h > 1.0, "loss": null });
        let bins = vec![serde_json::json!({ "tokens": 100, "rate": 50.0, "masked": 45 })];
        let samples = [[token("<b>", 0.5), token("two", 2.0)]];
        let tokens = serde_json::json!({ "bins": bins, "step": 20_000, "samples": samples });
        std::fs::write(out.join("tokens.json"), tokens.to_string()).unwrap();
        std::fs::write(out.join("run.toml"), format!("lr = {lr:?}\nseed = 0\n")).unwrap();
    }
    let (code, _, errors) = weftc(&["report", &path("a<b"), &path("second"), "-o", &path("report.html")]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(html.len() < 200_000, "{} bytes", html.len());
    assert!(["http:", "https:", "src=", "@import", "url(", "NaN", "a<b"].iter().all(|w| !html.contains(w)));
    // Forty-five of a hundred where fifty were due: one standard error of 0.05.
    assert!(html.contains("<td>0.5000</td><td>0.4500</td><td>-1.0</td>"));
    assert!(html.contains("--h:25%") && html.contains("title=\"H 2 nats, t 0.5, 1/t 2, masked\">two</span>"));
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
