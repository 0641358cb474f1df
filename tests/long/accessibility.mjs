// Checks every built page with axe-core, in headless Chromium: in the light and the dark
// theme, and as wide as a phone. Prints what is wrong, and exits with 1.
//
// npm install --prefix FOLDER puppeteer-core axe-core
// node tests/long/accessibility.mjs FOLDER PAGES CHROMIUM
import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, relative, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, pages, chromium] = process.argv.slice(2);
const require = createRequire(join(resolve(packages), "node_modules", "x.js"));
const { default: puppeteer } = await import(
  pathToFileURL(require.resolve("puppeteer-core")).href
);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const files = readdirSync(pages, { recursive: true, withFileTypes: true })
  .filter((file) => file.isFile() && file.name.endsWith(".html"))
  .map((file) => join(file.parentPath ?? file.path, file.name))
  .sort();
// Structure is the same in both themes, colours at both widths.
const views = [
  { name: "light", theme: "light", width: 1300, rules: {} },
  { name: "phone", theme: "light", width: 390, rules: { "color-contrast": { enabled: false } } },
  { name: "dark", theme: "dark", width: 1300, runOnly: ["color-contrast"] },
];

const browser = await puppeteer.launch({
  executablePath: chromium,
  args: ["--no-sandbox"],
});
const page = await browser.newPage();
page.on("pageerror", (error) => report("a script fails", [String(error)]));

let problems = 0;
let where = "";

function report(rule, details) {
  problems += 1;
  console.log(`${where}: ${rule}\n${details.map((x) => `    ${x}\n`).join("")}`);
}

for (const file of files) {
  await page.goto(pathToFileURL(resolve(file)).href);
  await page.evaluate(axe);
  for (const { name, theme, width, ...options } of views) {
    where = `${relative(pages, file)} (${name})`;
    await page.setViewport({ width, height: 1000 });
    await page.emulateMediaFeatures([
      { name: "prefers-color-scheme", value: theme },
      { name: "prefers-reduced-motion", value: "reduce" },
    ]);
    // The page has heard of its new size a frame later.
    await page.evaluate(() => new Promise((done) => setTimeout(done, 100)));
    const { violations } = await page.evaluate(
      (options) => axe.run({ ...options, resultTypes: ["violations"] }),
      options,
    );
    for (const { id, help, nodes } of violations) {
      const places = nodes.map((node) => `${node.target}: ${node.html}`);
      report(`${id}: ${help} (${nodes.length})`, places.slice(0, 3));
    }
    const scrolled = await page.evaluate(
      () => document.documentElement.scrollWidth - window.innerWidth,
    );
    if (scrolled > 0) report(`wider than the window by ${scrolled} pixels`, []);
  }
}
await browser.close();
console.log(`${files.length} pages, ${problems} problems`);
process.exit(problems > 0 ? 1 : 0);
