// A saved run in one file. The inspector below runs as on the page; what Gradio provides there
// (its element, value, files and server functions) comes from blocks of text in this file.
const replay = (() => {
  const block = (id) => document.getElementById(id);

  function bytesOf(base64) {
    const raw = atob(base64), made = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) made[i] = raw.charCodeAt(i);
    return made;
  }

  // Files are found by the last part of their address; no address is requested.
  const nameOf = (address) => "file-" + String(address).split("/").pop();

  async function storedFetch(address) {
    const found = block(nameOf(address));
    if (!found) return new Response(null, { status: 404 });
    return new Response(bytesOf(found.textContent.replace(/^data:[^,]*,/, "")));
  }

  function StoredImage() {
    const image = document.createElement("img");
    Object.defineProperty(image, "src", {
      get: () => image.getAttribute("src") || "",
      set(address) {
        const found = block(nameOf(address));
        image.setAttribute("src", found ? found.textContent : "data:,");
      },
    });
    return image; // `new StoredImage()` gives this element
  }

  // Single heads of a large run, token by token, as the page's server would send them.
  const server = {
    async token_maps(ask) {
      if (ask.stop !== ask.start + 1) {
        return { error: "This file holds single heads token by token: choose one token, or all heads and their mean." };
      }
      const found = block(`${ask.prompt ? "prompt" : "heads"}-${ask.variant}-${ask.start}`);
      return found ? { data: found.textContent }
        : { error: "This file holds the mean over the heads only, because all heads would make it too large." };
    },
  };
  const absent = async () => ({ error: "This is a saved file without a server; start the app to do that." });

  function followTheme() {
    const button = document.querySelector(".theme"), wish = window.matchMedia("(prefers-color-scheme: dark)");
    const show = (dark) => {
      document.documentElement.classList.toggle("dark", dark);
      button.textContent = dark ? "light" : "dark";
      button.setAttribute("aria-label", `Switch to ${dark ? "light" : "dark"} colours`);
    };
    show(wish.matches);
    wish.addEventListener("change", () => show(wish.matches));
    button.addEventListener("click", () => show(!document.documentElement.classList.contains("dark")));
  }

  function start(inspector) {
    followTheme();
    const { value, place } = JSON.parse(block("value").textContent);
    // A frame in a notebook has no address of its own, so what would be written there is kept here.
    const framed = location.protocol === "about:";
    const here = framed ? { hash: "", origin: "", pathname: "" } : location;
    const past = framed ? { state: null, replaceState(state, title, address) { here.hash = address; } } : history;
    if (place && !here.hash) past.replaceState(null, "", "#" + place);
    const asked = new Proxy(server, { get: (own, name) => own[name] || absent });
    const nothing = () => {};
    inspector(block("inspector"), nothing, { value }, asked, absent, nothing, storedFetch, StoredImage, past, here);
  }
  return { start };
})();
