// The script of a tab that is not the first one: fetched when the tab is opened (web/components/parts.py).
fetch(new URL("@address@", document.baseURI))
.then((answer) => (answer.ok ? answer.text() : Promise.reject(new Error(`${answer.status}`))))
.then((code) => new Function("element", "trigger", "props", "server", "upload", "watch", code)(element, trigger, props, server, upload, watch))
.catch((error) => {
  const alert = element.querySelector(".alert");
  alert.hidden = false;
  alert.textContent = "This tab could not be loaded. Please reload the page.";
  console.warn(`@address@: ${error.message}`);
});
