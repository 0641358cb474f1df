// The reference was one page: links to its entries lead to the chapter that has them.
const entry = location.hash.slice(1);
if (entry && !document.getElementById(entry)) {
  const link = document.querySelector(`article a[href$="#${CSS.escape(entry)}"]`);
  if (link) location.replace(link.href);
}

// What scrolls sideways can be reached, and scrolled, with the keyboard.
const SCROLLED = "article :is(pre, .table-wrapper, .output.text_html)";
function focusScrolled() {
  for (const box of document.querySelectorAll(SCROLLED)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
focusScrolled();
addEventListener("resize", focusScrolled);
