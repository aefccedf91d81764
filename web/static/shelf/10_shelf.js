// Example pictures: value = [{ url, prompt }]; a click sends its index to the page.
const shelf = element.querySelector(".shelf");

function show() {
  const items = props.value || [];
  shelf.hidden = !items.length;
  shelf.querySelector(".items").replaceChildren(...items.map((item, index) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.title = item.prompt;
    button.dataset.testid = `example-${index}`;
    image.src = new URL(item.url, document.baseURI).pathname;
    image.alt = `Example: ${item.prompt}`;
    button.append(image);
    button.addEventListener("click", () => trigger("select", { index }));
    return button;
  }));
}

watch("value", show);
show();
