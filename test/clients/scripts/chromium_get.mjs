// Arguments: URL, proxy server, user name, password, browser.
import { chromium } from 'playwright-core';

const [url, server, username, password, executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  proxy: { server, username, password },
  args: ['--no-sandbox'], // root, in the test's namespace
});
try {
  const page = await browser.newPage({ ignoreHTTPSErrors: true });
  const response = await page.goto(url);
  console.log(response.status(), response.statusText());
  console.log(await page.textContent('body'));
} finally {
  await browser.close();
}
